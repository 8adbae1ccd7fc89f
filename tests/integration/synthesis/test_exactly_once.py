"""Exactly once: killed at any write with several micro-shards under way, the same documents come out (protocols 3)."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import synthesis_support as support
from faults import FaultyStore, Killed, kill_points
from hypothesis import given, settings
from hypothesis import strategies as st

from instructpt.api.runspec import ResolvedInput, RunSpec
from instructpt.corpus.shards import iter_augmented, iter_corpus
from instructpt.errors import StorageError
from instructpt.storage import open_store
from instructpt.synthesis import shardsource, worker

SMALL = {"sampling": {"contextWindow": 2000, "maxTokens": 60}, "engine": {"name": "openai", "endpoint": "http://e/v1"}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    return support.make_model(tmp_path_factory.mktemp("model"))


def script(prompt: str) -> str:
    """Pairs, none, or garbage: a function of the document."""
    number = hashlib.sha256(prompt.rpartition("<CON>")[2].encode()).digest()[0] % 8
    return {0: "", 1: "no pair"}.get(number, support.GOOD)


@contextmanager
def overlapping(model: Path, seed: int, **fault: Any) -> Iterator[list[FaultyStore]]:
    """Workers with an engine of many requests at once, whose output fails as told."""
    stores: list[FaultyStore] = []
    opened = worker.open_store

    def open_faulty(uri: str, **options: Any) -> FaultyStore:
        stores.append(FaultyStore(opened(uri, **options), **fault))
        return stores[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "open_store", open_faulty)
        patch.setattr(worker, "_model", lambda work, scratch: model)
        patch.setattr(worker, "model_digest", lambda folder: "sha256:m")
        patch.setattr(worker, "open_engine", lambda *a, **k: support.ScriptedEngine(script, seed=seed))
        yield stores


def run(spec: RunSpec, model: Path, folder: Path, seed: int = 0, **fault: Any) -> int:
    """One life of the worker; how many writes it made."""
    with overlapping(model, seed, **fault) as stores:
        worker.run(spec, support.context(folder / "s"))
    return stores[0].writes


def made_once(spec: RunSpec, corpus: ResolvedInput, folder: Path) -> tuple[bytes, list[Any]]:
    """The manifest and the rows, after a look that no document is missing or there twice."""
    result = worker.finalize(spec.finalizer(), support.context(folder / "s"))
    wanted = [document.id for document in iter_corpus(corpus)]
    found = [shot.document for row in iter_augmented(ResolvedInput(uri=spec.output.uri)) for shot in row.shots]
    assert sorted(found) == sorted(wanted)
    assert result.counts["documents"] == len(wanted)
    store = open_store(spec.output.uri)
    assert sum("/commits/" in info.key for info in store.list()) == result.counts["shards"]
    assert not [info.key for info in store.list() if "/leases/" in info.key and _is_open(store, info.key)]
    return support.fingerprint(spec)


def _is_open(store: Any, key: str) -> bool:
    """Whether a lease stands for a micro-shard without a commit."""
    prefix, _, rest = key.partition("/leases/")
    return not store.exists(f"{prefix}/commits/{rest.split('/')[0]}")


def test_a_kill_at_every_write_changes_nothing(tmp_path: Path, model: Path) -> None:
    corpus = support.make_corpus(tmp_path, support.sentences(12), per_shard=3)
    options: dict[str, Any] = {"model": model, "settings": {**SMALL, "shots": 2}}
    clean = support.make_spec(corpus, tmp_path / "clean", **options)
    writes = run(clean, model, tmp_path)
    assert writes == 1 + 4 * 3  # the stamp; a lease, data and a commit for each
    wanted = made_once(clean, corpus, tmp_path)
    for number, moment in kill_points(writes):
        spec = support.make_spec(corpus, tmp_path / f"{number}-{moment}", **options)
        with pytest.raises(Killed):
            run(spec, model, tmp_path, kill_at=number, moment=moment)
        run(spec, model, tmp_path)
        assert made_once(spec, corpus, tmp_path) == wanted


@settings(max_examples=20, deadline=None)
@given(
    documents=st.integers(1, 30),
    per_shard=st.integers(1, 7),
    shots=st.integers(1, 3),
    lanes=st.integers(1, 20),
    lives=st.lists(st.tuples(st.integers(1, 12), st.sampled_from(["before", "after"]), st.integers(0, 9)), max_size=5),
)
def test_any_number_of_kills_ends_with_the_documents_of_none(
    model: Path, documents: int, per_shard: int, shots: int, lanes: int, lives: list[tuple[int, Any, int]]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = support.make_corpus(folder, support.sentences(documents), per_shard=per_shard)
        engine = {**SMALL["engine"], "concurrency": lanes}
        options: dict[str, Any] = {"model": model, "settings": {**SMALL, "engine": engine, "shots": shots}}
        clean = support.make_spec(corpus, folder / "clean", **options)
        run(clean, model, folder)
        spec = support.make_spec(corpus, folder / "killed", **options)
        for number, moment, seed in lives:
            try:
                run(spec, model, folder, seed, kill_at=number, moment=moment)
            except Killed:
                continue
        run(spec, model, folder)
        assert made_once(spec, corpus, folder) == made_once(clean, corpus, folder)


def test_a_storage_that_stumbles_at_any_write_is_waited_for(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shardsource, "_FIRST_PAUSE", 0.001)
    corpus = support.make_corpus(tmp_path, support.sentences(9), per_shard=3)
    options: dict[str, Any] = {"model": model, "settings": SMALL}
    clean = support.make_spec(corpus, tmp_path / "clean", **options)
    run(clean, model, tmp_path)
    for moment in ("before", "after"):
        spec = support.make_spec(corpus, tmp_path / moment, **options)
        failing = frozenset({*range(2, 11, 2), 11, 12})  # two in a row, too
        run(spec, model, tmp_path, fail_at=failing, moment=moment)
        assert made_once(spec, corpus, tmp_path) == made_once(clean, corpus, tmp_path)


def test_a_storage_that_does_not_recover_ends_the_worker_and_the_next_one_goes_on(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shardsource, "PATIENCE_SECONDS", 0.0)
    corpus = support.make_corpus(tmp_path, support.sentences(9), per_shard=3)
    options: dict[str, Any] = {"model": model, "settings": SMALL}
    for number in range(2, 11):
        spec = support.make_spec(corpus, tmp_path / str(number), **options)
        with pytest.raises(StorageError, match="injected"):
            run(spec, model, tmp_path, fail_at=frozenset({number}), moment="after")
        run(spec, model, tmp_path)
        made_once(spec, corpus, tmp_path)
