"""How the arms of ``bench-synthesis`` are run: documents, RunSpecs, child processes, kills."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from synthesis_fixture import documents

Found = dict[str, Any]
HERE = Path(__file__).parent
SEED = 7
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
"""The engine computes on one core, in every arm, and leaves the other to who feeds it."""
PER_SHARD = 60
"""Documents of a micro-shard: whole chains of 2, 3 and 5."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a group sets.

    Attributes:
        documents: How many.
        facts: Sentences of a document, at least and at most.
        shots: M.
        sequences: Requests that the engine computes at once.
        lanes: Chains that ours keeps in flight.
        block_size: Of the KV pool.
        blocks: Of the KV pool.
        max_tokens: Of a completion.
        context_window: Prompt and completion.
    """

    documents: int
    facts: tuple[int, int]
    sequences: int
    lanes: int
    blocks: int
    shots: int = 1
    block_size: int = 32
    max_tokens: int = 200
    context_window: int = 4096

    def of(self, shots: int, **changes: Any) -> Setting:
        """The same with another M and other changes."""
        return replace(self, shots=shots, **changes)

    def to_dict(self) -> Found:
        """As data."""
        return asdict(self)

    @property
    def engine(self) -> Found:
        """Arguments of vLLM, the same in every arm."""
        return {
            "max_num_seqs": self.sequences,
            "max_num_batched_tokens": 2048,
            "block_size": self.block_size,
            "num_gpu_blocks_override": self.blocks,
            "enable_prefix_caching": True,
            "enforce_eager": True,
        }


ENGINE = Setting(documents=900, facts=(10, 20), sequences=32, lanes=64, blocks=4096)
CHAINS = Setting(documents=600, facts=(16, 20), sequences=16, lanes=32, blocks=640)


@dataclass(kw_only=True)
class Bench:
    """One run of the benchmark: its folder, its model and its sizes."""

    folder: Path
    model: Path
    scale: float
    checkout: str | None
    peer: Path | None
    chaos_documents: int
    kill_seconds: float
    memory_documents: tuple[int, ...]
    memory_vllm_documents: tuple[int, ...]
    _numbers: int = field(default=0)

    def scaled(self, setting: Setting) -> Setting:
        """A share of the documents, in whole micro-shards."""
        wanted = round(setting.documents * self.scale / PER_SHARD)
        return replace(setting, documents=PER_SHARD * max(2, wanted))

    # ------------------------------------------------------------------ arms

    def ours(self, setting: Setting) -> Found:
        """The product's worker, from the moment its engine is up to its last commit."""
        spec = self._spec(setting)
        found = child("worker", self._worker_job(spec, setting))
        seconds = last_commit(spec) - found.pop("ready")
        return {"seconds": seconds, **found, **self._finalized(spec)}

    def raw(self, setting: Setting) -> Found:
        """The bare engine on the ids of the same prompts."""
        job = self._engine_job(setting)
        job["prompts"] = str(self._path("prompts.json"))
        Path(job["prompts"]).write_text(json.dumps(self._prompts(setting)[1]))
        return child("raw", job)

    def datatrove(self, setting: Setting) -> Found | None:
        """InferenceRunner on vLLM's own server; None where datatrove is not installed."""
        if self.peer is None:
            return None
        folder = self._path("datatrove")
        (folder / "in").mkdir(parents=True)
        texts, _ = self._prompts(setting)
        lines = (json.dumps({"id": str(n), "text": text}) + "\n" for n, text in enumerate(texts))
        (folder / "in" / "0.jsonl").write_text("".join(lines))
        sampling = {"temperature": 0.0, "max_tokens": setting.max_tokens, "stop_token_ids": [self._eos()]}
        with self._server(setting) as endpoint:
            job = {
                "endpoint": endpoint,
                "model": str(self.model),
                "context_window": setting.context_window,
                "requests": setting.lanes,
                "sampling": {**sampling, "ignore_eos": True},
                "folder": str(folder / "in"),
                "output": str(folder / "out"),
                "logs": str(folder / "logs"),
            }
            found = run_child([str(self.peer), str(HERE / "synthesis_datatrove.py")], job)
        assert found["requests"] == setting.documents, found
        return found

    def reference(self, setting: Setting, shots: Sequence[int]) -> dict[int, Found]:
        """The reference's functions, all values of M on one engine."""
        path = self._path("documents.jsonl")
        lines = (json.dumps({"text": text}) + "\n" for text in self._texts(setting))
        path.write_text("".join(lines))
        job = {**self._engine_job(setting), "shots": list(shots), "documents": str(path), "checkout": self.checkout}
        found = child("reference", job)
        start = found.pop("start_seconds")
        return {number: {**found[str(number)], "start_seconds": start} for number in shots}

    def killed(self, setting: Setting) -> Found:
        """The worker, killed with its engine after every ``kill_seconds`` of it, until one ends by itself."""
        spec = self._spec(setting)
        begun, up, kills, starts = time.time(), 0.0, 0, []
        while True:
            job = self._worker_job(spec, setting)
            ready_file = job["ready_file"] = str(self._path("ready"))
            launched = time.time()
            process = start_child([sys.executable, str(HERE / "synthesis_arms.py"), "worker"], job)
            ready = wait_for(Path(ready_file), process)
            starts.append(ready - launched)
            try:
                process.wait(timeout=max(0.0, ready + self.kill_seconds - time.time()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                if len(commits(spec)) < math.ceil(setting.documents / PER_SHARD):
                    up, kills = up + time.time() - ready, kills + 1
                    continue
            assert process.returncode in (0, -signal.SIGKILL), f"the worker ended with {process.returncode}"
            ended = last_commit(spec)  # a kill after it disturbed nothing
            up += ended - ready
            break
        found = {"seconds": up, "wall_seconds": ended - begun, "kills": kills, "start_seconds": max(starts)}
        return {**found, **self._finalized(spec)}

    def mined(self, documents: int) -> Found:
        """The worker with rules, no model; nothing is noted, so that its memory is its own."""
        return self._memory(
            self._spec(ENGINE.of(1, documents=documents, facts=(3, 6)), strategy="mined", per_shard=1000)
        )

    def vllm(self, documents: int) -> Found:
        """The worker with its engine; nothing is noted."""
        return self._memory(self._spec(ENGINE.of(1, documents=documents)))

    def _memory(self, spec: Any) -> Found:
        begun = time.time()
        found = run_child([sys.executable, str(HERE / "synthesis_memory.py")], self._spec_job(spec))
        return {"seconds": last_commit(spec) - begun, **found, **self._finalized(spec)}

    # ------------------------------------------------------------- what they need

    def _path(self, name: str) -> Path:
        self._numbers += 1
        return self.folder / f"{self._numbers:03d}-{name}"

    def _texts(self, setting: Setting) -> Iterator[str]:
        return (text for text, _ in documents(setting.documents, setting.facts, seed=SEED))

    def _prompts(self, setting: Setting) -> tuple[list[str], list[list[int]]]:
        """Prompts of single shots, as text and as ids."""
        from instructpt.synthesis import profiles
        from instructpt.synthesis.tokenization import load_tokenizer

        profile, tokenizer = profiles.load(), load_tokenizer(self.model)
        texts = [profile.render([], text) for text in self._texts(setting)]
        return texts, [tokenizer.encode(text) for text in texts]

    def _eos(self) -> int:
        from instructpt.synthesis import profiles
        from instructpt.synthesis.tokenization import load_tokenizer

        return load_tokenizer(self.model).id_of(profiles.load().eos)

    def _engine_job(self, setting: Setting) -> Found:
        return {
            "model": str(self.model),
            "engine": setting.engine,
            "context_window": setting.context_window,
            "max_tokens": setting.max_tokens,
            "block_size": setting.block_size,
            "eos": self._eos(),
        }

    def _worker_job(self, spec: Any, setting: Setting) -> Found:
        return {**self._spec_job(spec), "block_size": setting.block_size}

    def _spec_job(self, spec: Any) -> Found:
        from instructpt.api.runspec import hash_of

        path = self._path("runspec.json")
        path.write_text(spec.to_json())
        return {"spec": str(path), "hash": hash_of(path.read_bytes()), "scratch": str(self._path("scratch"))}

    def _spec(self, setting: Setting, *, strategy: str = "instruction-synthesizer", per_shard: int = PER_SHARD) -> Any:
        """A RunSpec of a synthesis over a corpus of the setting's documents, into an empty folder."""
        from instructpt.api.base import StorageSpec
        from instructpt.api.runspec import ResolvedInput, RunSpec, SynthesizeRun
        from instructpt.api.v1alpha1.synthesisjob import SynthesisSettings
        from instructpt.api.version import VERSION

        corpus = self._corpus(setting, per_shard)
        engine: Found = {"name": "mined"}
        if strategy != "mined":
            engine = {"name": "vllm", "concurrency": setting.lanes, "args": setting.engine}
        settings = {
            "shots": setting.shots,
            "sampling": {"maxTokens": setting.max_tokens, "contextWindow": setting.context_window},
            "engine": engine,
            "leaseSeconds": 10,
        }
        return RunSpec(
            verb="synthesize",
            owner_kind="SynthesisJob",
            owner_name="benchmark",
            step="synthesize",
            output=StorageSpec(uri=str(self._path("augmented"))),
            code_version=VERSION,
            synthesize=SynthesizeRun(
                corpus=corpus,
                strategy=strategy,
                model=None if strategy == "mined" else ResolvedInput(uri=str(self.model)),
                settings=SynthesisSettings.model_validate(settings),
            ),
        )

    def _corpus(self, setting: Setting, per_shard: int) -> Any:
        """The inspected corpus of a setting, made once."""
        from instructpt.api.base import StorageSpec
        from instructpt.api.runspec import InspectRun, ResolvedInput, RunSpec
        from instructpt.api.v1alpha1.corpus import CorpusSource, Split
        from instructpt.api.version import VERSION
        from instructpt.corpus import inspect
        from instructpt.telemetry.context import WorkerContext

        folder = self.folder / f"corpus-{setting.documents}-{setting.facts[0]}-{per_shard}"
        source = folder / "documents.jsonl"
        if not source.exists():
            folder.mkdir()
            with source.open("w") as lines:
                for number, text in enumerate(self._texts(setting)):
                    lines.write(json.dumps({"id": f"d{number}", "text": text}) + "\n")
        spec = RunSpec(
            verb="inspect",
            owner_kind="Corpus",
            owner_name="benchmark",
            step="inspect",
            output=StorageSpec(uri=str(folder / "corpus")),
            code_version=VERSION,
            inspect=InspectRun(
                source=CorpusSource(uri=str(source), id_field="id"), split=Split(), documents_per_shard=per_shard
            ),
        )
        context = WorkerContext(worker_id="benchmark", scratch=folder / "scratch")
        inspect.run(spec, context)
        result = inspect.finalize(spec.finalizer(), context)
        return ResolvedInput(uri=result.uri, digest=result.digest)

    def _finalized(self, spec: Any) -> Found:
        """Close the stage; counts, and documents that are lost or there twice."""
        from instructpt.api.runspec import ResolvedInput
        from instructpt.corpus.shards import iter_augmented, iter_corpus
        from instructpt.synthesis.finalize import finalize
        from instructpt.telemetry.context import WorkerContext

        result = finalize(spec.finalizer(), WorkerContext(worker_id="benchmark", scratch=self._path("scratch")))
        assert result.missing == 0
        names = [shot.document for row in iter_augmented(ResolvedInput(uri=result.uri)) for shot in row.shots]
        wanted = {document.id for document in iter_corpus(spec.synthesize.corpus)}
        return {
            "documents": result.counts["documents"],
            "pairs": result.counts["pairs"],
            "lost": len(wanted - set(names)),
            "doubled": len(names) - len(set(names)),
        }

    @contextlib.contextmanager
    def _server(self, setting: Setting) -> Iterator[str]:
        """The server that vLLM brings, with the engine settings of the other arms."""
        from instructpt.synthesis.vllm_engine import load

        load()  # puts the variables that the CPU build needs into this process's environment
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        # Not its command `vllm`: it asks for a distribution of that name, and the CPU build has another.
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.model)]
        command += ["--port", str(port), "--host", "127.0.0.1", "--max-model-len", str(setting.context_window)]
        command += ["--disable-uvicorn-access-log", "--disable-log-stats"]
        for name, value in setting.engine.items():
            command += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])
        with self._path("server.log").open("w") as log:
            env = {**os.environ, **ENVIRONMENT}
            process = subprocess.Popen(command, stdout=log, stderr=log, env=env, start_new_session=True)
        try:
            wait_until_healthy(f"http://127.0.0.1:{port}/health", process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


# --------------------------------------------------------------------------- processes


def child(arm: str, job: Found) -> Found:
    """One arm in a process of its own."""
    return run_child([sys.executable, str(HERE / "synthesis_arms.py"), arm], job)


def run_child(command: list[str], job: Found) -> Found:
    """Run a command on a job; the result that it prints among whatever its libraries print.

    Raises:
        SystemExit: It failed; with what it said.
    """
    process = start_child(command, job, stdout=subprocess.PIPE)
    output, _ = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command[1:])} ended with {process.returncode}:\n{output[-4000:]}")
    return result_in(output)


def result_in(output: str) -> Found:
    """The result in the output of a child.

    Raises:
        ValueError: There is none.
    """
    for line in reversed(output.splitlines()):
        if line.startswith("RESULT "):
            found: Found = json.loads(line.removeprefix("RESULT "))
            return found
    raise ValueError(f"no result in the output: {output[-1000:]!r}")


def start_child(command: list[str], job: Found, *, stdout: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    """Start a command on a job, in a process group of its own."""
    env = {**os.environ, **ENVIRONMENT, "INSTRUCTPT_LOG_LEVEL": "WARNING"}
    if "scratch" in job:  # a worker
        scratch = Path(job["scratch"])
        scratch.mkdir(exist_ok=True)
        env |= {"INSTRUCTPT_SCRATCH": str(scratch), "INSTRUCTPT_WORKER_ID": "benchmark-0"}
        env |= {"INSTRUCTPT_PORT_FILE": str(scratch / "port"), "INSTRUCTPT_TERMINATION_LOG": str(scratch / "ended")}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=stdout, stderr=None, text=True, env=env, start_new_session=True
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(job) + "\n")
    process.stdin.close()
    process.stdin = None
    return process


def wait_for(path: Path, process: subprocess.Popen[str]) -> float:
    """The time that a file holds, as soon as it is there.

    Raises:
        SystemExit: The process ended before.
    """
    while not path.exists():
        if process.poll() is not None:
            raise SystemExit(f"the worker ended with {process.returncode} before its engine was up")
        time.sleep(0.05)
    return float(path.read_text())


def wait_until_healthy(url: str, process: subprocess.Popen[bytes]) -> None:
    """Ask until the server answers.

    Raises:
        SystemExit: It ended before.
    """
    while True:
        if process.poll() is not None:
            raise SystemExit(f"vLLM's server ended with {process.returncode}")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)


def commits(spec: Any) -> list[Path]:
    """Of the micro-shards that are done."""
    return [path for path in Path(spec.output.uri).rglob("commits/*") if path.is_file()]


def last_commit(spec: Any) -> float:
    """When the last micro-shard was committed."""
    return max(path.stat().st_mtime for path in commits(spec))
