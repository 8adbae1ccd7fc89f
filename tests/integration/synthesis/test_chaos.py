"""Real workers against a real S3 server are killed while their engine is at work: the same documents come out."""

from __future__ import annotations

import asyncio
import hashlib
import random
import subprocess
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import operators
import pytest
import s3servers
import synthesis_support as support
from completion_server import Answer, Server, completion, in_thread

from instructpt.api.base import StorageSpec
from instructpt.api.runspec import ResolvedInput, RunSpec
from instructpt.corpus.shards import iter_augmented, iter_corpus
from instructpt.storage import open_store
from instructpt.synthesis import worker
from instructpt.synthesis.openai_engine import KEY as API_KEY
from instructpt.synthesis.tokenization import load_tokenizer

DOCUMENTS = 90
WORKERS = 2
KEY = API_KEY.variable
KILLS_AT = (12, 40, 70)
"""Completions after which a worker is killed."""


class Model:
    """Stands for a served synthesizer: slow enough that many requests overlap, and a function of the document.

    At every mark it holds what it is asked until :meth:`go_on`, so that a worker can be killed which surely has
    requests under way.
    """

    def __init__(self, folder: Path) -> None:
        self._decode = load_tokenizer(folder).decode
        self._rng = random.Random(3)
        self._marks = list(KILLS_AT)
        self._free = asyncio.Event()
        self._free.set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.server = Server(self.answer)
        self.asked = self.answered = self.most_at_once = 0
        self.under_way: Counter[str] = Counter()
        self.mark = threading.Semaphore(0)

    async def answer(self, number: int, body: dict[str, Any]) -> Answer:
        self._loop = asyncio.get_running_loop()
        worker_id = self.server.headers[-1]["authorization"].removeprefix("Bearer ")
        self.asked += 1
        self.under_way[worker_id] += 1
        self.most_at_once = max(self.most_at_once, self.under_way.total())
        try:
            await asyncio.sleep(self._rng.uniform(0.01, 0.2))
            await self._free.wait()
        finally:
            self.under_way[worker_id] -= 1
        self.answered += 1
        if self._marks and self.answered >= self._marks[0]:
            self._marks.pop(0)
            self._free.clear()
            self.mark.release()
        document = self._decode(body["prompt"]).rpartition("<CON>")[2]
        kind = hashlib.sha256(document.encode()).digest()[0] % 8
        return completion({0: "", 1: "no pair"}.get(kind, support.GOOD))

    def waiting(self) -> list[str]:
        """The workers that wait for an answer."""
        return sorted(name for name, count in self.under_way.items() if count)

    def go_on(self) -> None:
        """Answer again."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._free.set)


def spec_for(corpus: ResolvedInput, model: Path, output: StorageSpec, endpoint: str) -> RunSpec:
    engine = {"name": "openai", "endpoint": endpoint, "concurrency": 12, "args": {"backoff_seconds": 0.01}}
    settings = {"sampling": {"contextWindow": 512, "maxTokens": 60}, "engine": engine, "shots": 2}
    spec = support.make_spec(corpus, "unused", model=model, settings=settings, parallelism=WORKERS)
    return spec.model_copy(update={"output": output})


@pytest.mark.slow
def test_killed_workers_lose_and_double_no_document(
    s3_versitygw: s3servers.S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    for name, value in s3_versitygw.env.items():
        monkeypatch.setenv(name, value)
    folder = support.make_model(tmp_path / "model")
    corpus = support.make_corpus(tmp_path, support.sentences(DOCUMENTS), per_shard=6)
    where = {"endpoint": s3_versitygw.endpoint, "region": "us-east-1"}
    output = StorageSpec(uri=f"s3://{s3_versitygw.bucket}/{tmp_path.name}-chaos", **where)
    model = Model(folder)
    with in_thread(model.server) as server:
        spec = spec_for(corpus, folder, output, server.endpoint)
        _run_and_kill(spec, tmp_path, model)
        asked = model.asked
        monkeypatch.setenv(KEY, "alone")
        alone = spec_for(corpus, folder, StorageSpec(uri=str(tmp_path / "alone")), server.endpoint)
        undisturbed = support.run_stage(alone, tmp_path / "s")
        assert model.asked - asked == DOCUMENTS  # one request a document, so more of them mean lost work
    result = worker.finalize(spec.finalizer(), support.context(tmp_path / "s"))
    assert result.counts["documents"] == DOCUMENTS
    there = ResolvedInput(uri=output.uri, digest=result.digest, **where)
    rows = list(iter_augmented(there))
    found = [shot.document for row in rows for shot in row.shots]
    assert sorted(found) == sorted(document.id for document in iter_corpus(corpus))
    assert rows == list(iter_augmented(ResolvedInput(uri=undisturbed.uri)))
    store = open_store(output.uri, access=output)
    assert sum("/commits/" in info.key for info in store.list()) == result.counts["shards"] == 15
    assert asked >= DOCUMENTS + len(KILLS_AT)  # each kill really lost work, which was made again
    assert model.most_at_once > 6  # more than one micro-shard's chains were under way


def _run_and_kill(spec: RunSpec, folder: Path, model: Model) -> None:
    """Workers until each has left by itself; at every mark one with work in the engine is killed and started again."""
    rng = random.Random(11)
    running: dict[str, subprocess.Popen[str]] = {}

    def start(name: str) -> None:
        running[name] = support.start_driver(spec, folder, name, env={KEY: name})

    for number in range(WORKERS):
        start(f"w{number}")
    try:
        for _ in KILLS_AT:
            assert model.mark.acquire(timeout=200)
            name = rng.choice(operators.wait_for(model.waiting))
            running[name].kill()
            status, output = support.finish(running[name])
            assert status == support.KILLED, output
            model.go_on()
            start(name)
        for process in running.values():
            status, output = support.finish(process)
            assert status == 0, output
    finally:
        for process in running.values():
            process.kill()
