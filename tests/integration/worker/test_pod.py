"""Workers as pods run them: a mounted Secret, a read-only root, a bare uid, SIGTERM, a termination message."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import s3servers
from synthesis_support import make_corpus, make_spec

import instructpt
from instructpt.api.base import SecretRef, StorageSpec
from instructpt.api.runspec import (
    EvaluatedModel,
    EvaluateRun,
    InitRun,
    InspectRun,
    PackRun,
    PreparedSource,
    ReportRun,
    ResolvedInput,
    RunSpec,
    StageOutput,
    TokenizerRun,
    TrainRun,
    TrainSource,
)
from instructpt.api.v1alpha1.corpus import CorpusSource, Split
from instructpt.api.v1alpha1.evaluationjob import EvaluationSettings
from instructpt.api.v1alpha1.trainingjob import CheckpointSpec, DeepSpeed, Optimizer, Schedule

SECONDS = 200.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
WRONG = "a-wrong-secret-key-0123456789"
DIGEST = "sha256:" + "0" * 64


@dataclass
class Worker:
    """One process of ``instructpt worker``."""

    spec: RunSpec
    folder: Path
    process: subprocess.Popen[bytes]

    def wait(self, seconds: float = SECONDS) -> int:
        try:
            return self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.spec.verb} still runs:\n{self.log[-3000:]}") from None

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    @property
    def message(self) -> dict[str, Any]:
        return json.loads((self.folder / "termination").read_text())


@pytest.fixture
def start(tmp_path):
    """Starts workers; whatever still runs at the end is killed."""
    started: list[Worker] = []

    def make(spec: RunSpec, *, prefix: tuple[str, ...] = (), root: Path = tmp_path, **env: str) -> Worker:
        folder = root / f"worker-{len(started)}"
        folder.mkdir()
        (folder / "runspec.json").write_text(spec.to_json())
        argv = [sys.executable, "-m", "instructpt", "worker", spec.verb, "--run-spec", str(folder / "runspec.json")]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [*prefix, *argv, "--hash", spec.hash],
                env={
                    "PATH": os.environ["PATH"], "PYTHONPATH": str(Path(instructpt.__file__).parent.parent),
                    "HOME": str(folder), "AWS_MAX_ATTEMPTS": "1", "AWS_EC2_METADATA_DISABLED": "true",
                    "INSTRUCTPT_SCRATCH": str(folder / "scratch"), "INSTRUCTPT_SECRETS_DIR": str(tmp_path / "secrets"),
                    "INSTRUCTPT_TERMINATION_LOG": str(folder / "termination"),
                    "INSTRUCTPT_PORT_FILE": str(folder / "port"), "INSTRUCTPT_THREADS": "1", **env,
                },
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        started.append(Worker(spec, folder, process))
        return started[-1]

    yield make
    for worker in started:
        if worker.process.poll() is None:
            worker.process.kill()
        worker.process.wait()


def runspec(verb: str, output: StorageSpec, **section: Any) -> RunSpec:
    return RunSpec(
        verb=verb, owner_kind="X", owner_name="x", step="x", code_version="test", output=output, **section
    )  # fmt: skip


def every_stage(access: dict[str, Any], bucket: str = "tests") -> dict[str, RunSpec]:
    """A RunSpec of each stage and its finalizer, all of whose inputs and outputs lie on one server."""

    def at(name: str) -> dict[str, Any]:
        return {"uri": f"s3://{bucket}/{name}", **access}

    tokens, tokenizer = ResolvedInput(digest=DIGEST, **at("tokens")), ResolvedInput(digest=DIGEST, **at("tokenizer"))
    text = PreparedSource(name="text", format="jsonl", **at("text"))
    train = TrainRun(
        objective="Pretraining", init=InitRun(config={"model_type": "llama"}), tokenizer=tokenizer,
        sources=(TrainSource(name="text", weight=1.0, max_repeats=1, **dict(tokens)),), tokens=1000,
        sequence_length=64, global_batch_rows=8, micro_batch_rows=4, optimizer=Optimizer(), schedule=Schedule(),
        gradient_clip=1.0, precision="auto", deepspeed=DeepSpeed(), checkpoint=CheckpointSpec(), seed=1,
    )  # fmt: skip
    output = StorageSpec(**at("out"))
    synthesize = make_spec(ResolvedInput(digest=DIGEST, **at("corpus")), "out").synthesize
    sections: dict[str, tuple[str, Any]] = {
        "inspect": ("inspect", InspectRun(source=CorpusSource(**at("raw")), split=Split(), documents_per_shard=4)),
        "synthesize": ("synthesize", synthesize),
        "tokenizer": ("prepare", TokenizerRun(source=text, vocab_size=300)),
        "pack": ("prepare", PackRun(source=text, tokenizer=tokenizer, sequence_length=64, objective="Pretraining")),
        "train": ("train", train),
        "evaluate": (
            "evaluate",
            EvaluateRun(
                models=(EvaluatedModel(name="m", digest=DIGEST, **at("model")),), settings=EvaluationSettings(),
                corpus=ResolvedInput(digest=DIGEST, **at("corpus")),
            ),
        ),
        "report": ("finalize", ReportRun(stages=(StageOutput(step="s", kind="train", digest=DIGEST, **at("model")),))),
    }  # fmt: skip
    specs = {stage: runspec(verb, output, **{stage: section}) for stage, (verb, section) in sections.items()}
    closers = {f"{stage}-finalize": spec.finalizer() for stage, spec in specs.items() if spec.verb != "finalize"}
    return specs | closers


def access_of(endpoint: str) -> dict[str, Any]:
    return {"endpoint": endpoint, "region": "us-east-1", "secret_ref": SecretRef(name="team-s3")}


def secret(folder: Path, access_key: str, secret_key: str) -> None:
    mounted = folder / "secrets" / "team-s3"
    mounted.mkdir(parents=True)
    (mounted / "AWS_ACCESS_KEY_ID").write_text(access_key)
    (mounted / "AWS_SECRET_ACCESS_KEY").write_text(secret_key)


def ends_of(start: Callable[..., Worker], specs: dict[str, RunSpec], **env: str) -> dict[str, tuple[int, Worker]]:
    """Exit codes by stage; three run at a time."""
    ends, names = {}, list(specs)
    for group in (names[i : i + 3] for i in range(0, len(names), 3)):
        workers = {name: start(specs[name], **env) for name in group}
        ends |= {name: (worker.wait(), worker) for name, worker in workers.items()}
    return ends


def test_wrong_credentials_end_every_stage_with_43_and_the_secrets_name(s3_versitygw, start, tmp_path):
    secret(tmp_path, s3_versitygw.access_key, WRONG)
    ends = ends_of(start, every_stage(access_of(s3_versitygw.endpoint)))
    for name, (code, worker) in ends.items():
        error = worker.message["error"]
        assert (code, error["type"], error["retryable"]) == (43, "CredentialsError", False), (name, error)
        assert "team-s3" in error["message"], name
        assert WRONG not in worker.log + json.dumps(error), name


def test_a_secret_without_a_key_ends_with_43(s3_versitygw, start, tmp_path):
    secret(tmp_path, "", WRONG)
    worker = start(every_stage(access_of(s3_versitygw.endpoint))["inspect"])
    assert worker.wait() == 43
    assert worker.message["error"]["type"] == "CredentialsError"
    assert "put the key AWS_ACCESS_KEY_ID into the Secret team-s3" in worker.message["error"]["message"]


def test_a_server_that_cannot_be_reached_may_be_tried_again(start, tmp_path):
    secret(tmp_path, "someaccesskey", WRONG)
    endpoint = f"http://127.0.0.1:{s3servers.free_port()}"
    for name, (code, worker) in ends_of(start, every_stage(access_of(endpoint))).items():
        error = worker.message["error"]
        assert (code, error["type"], error["retryable"]) == (1, "StorageError", True), (name, error)
        assert f"cannot reach {endpoint}" in error["message"], name


READ_ONLY = """
mount --make-rprivate / && mount --bind "$1" "$1" && mount -o remount,bind,ro / || exit 99
shift
exec setpriv --reuid 65532 --regid 65532 --clear-groups \\
  --inh-caps=-all,+dac_read_search --ambient-caps=-all,+dac_read_search "$@"
"""
"""Read-only but for one folder, as a uid without a name; the capability is to read only: tests lie in a home."""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can reach and write; those of pytest are the caller's alone."""
    with tempfile.TemporaryDirectory(prefix="instructpt-pod-") as name:
        Path(name).chmod(0o777)
        yield Path(name)


@pytest.fixture
def pod(start, open_folder):
    """Starts workers as pods do with ``readOnlyRootFilesystem`` and ``runAsUser: 65532``."""
    prefix = ("unshare", "-m", "sh", "-c", READ_ONLY, "sh", str(open_folder))
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs root to make a mount namespace")

    def make(spec: RunSpec) -> Worker:
        before = os.umask(0)
        try:
            return start(spec, prefix=prefix, root=open_folder, HOME="/")
        finally:
            os.umask(before)

    return make


def text_files(folder: Path, files: int, lines: int) -> PreparedSource:
    folder.mkdir()
    for part in range(files):
        rows = (json.dumps({"text": f"document {part} {line} reads a text and writes pairs"}) for line in range(lines))
        (folder / f"{part:04}.jsonl").write_text("\n".join(rows) + "\n")
    return PreparedSource(name="text", format="jsonl", uri=str(folder))


def produced(pod: Callable[..., Worker], spec: RunSpec) -> ResolvedInput:
    """The output of a stage whose worker and finalizer both ran."""
    for each in (spec, spec.finalizer()):
        worker = pod(each)
        assert worker.wait() == 0, worker.log[-3000:]
    assert worker.message["missing"] == 0
    return ResolvedInput(uri=worker.message["uri"], digest=worker.message["digest"])


@pytest.mark.deepspeed
def test_preparation_training_and_evaluation_need_no_home_no_name_and_no_writable_root(pod, open_folder):
    def at(name: str) -> StorageSpec:
        return StorageSpec(uri=str(open_folder / name))

    source = text_files(open_folder / "text", 2, 150)
    tokenizer = produced(pod, runspec("prepare", at("tok"), tokenizer=TokenizerRun(source=source, vocab_size=300)))
    pack = PackRun(source=source, tokenizer=tokenizer, sequence_length=64, objective="Pretraining")
    tokens = produced(pod, runspec("prepare", at("tokens"), pack=pack))
    config = {
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    }  # fmt: skip
    train = TrainRun(
        objective="Pretraining", init=InitRun(config=config), tokenizer=tokenizer,
        sources=(TrainSource(name="text", weight=1.0, max_repeats=4, **dict(tokens)),), tokens=5000,
        sequence_length=64, global_batch_rows=8, micro_batch_rows=4, optimizer=Optimizer(), schedule=Schedule(),
        gradient_clip=1.0, precision="auto", deepspeed=DeepSpeed(zero_stage=2), processes_per_node=2,
        checkpoint=CheckpointSpec(every_steps=4), seed=1,
    )  # fmt: skip
    model = produced(pod, runspec("train", at("model"), train=train))
    corpus = produced(
        pod,
        runspec(
            "inspect", at("corpus"),
            inspect=InspectRun(
                source=CorpusSource(uri=str(open_folder / "text")), split=Split(tune=0.0, train=0.6, held_out=0.4),
                documents_per_shard=50,
            ),
        ),
    )  # fmt: skip
    evaluate = EvaluateRun(
        models=(EvaluatedModel(name="m", **dict(model)),), corpus=corpus,
        settings=EvaluationSettings(max_documents=4, max_questions=4, max_answer_tokens=4),
    )  # fmt: skip
    worker = pod(runspec("evaluate", at("scores"), evaluate=evaluate))
    assert worker.wait() == 0, worker.log[-3000:]
    assert "Read-only file system" not in worker.log
    assert "Permission denied" not in worker.log


def progress_of(worker: Worker) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{(worker.folder / 'port').read_text()}/progress") as answer:
        return json.loads(answer.read())


@pytest.mark.parametrize("verb", ["inspect", "prepare", "synthesize"])
def test_a_worker_that_is_asked_to_leave_ends_with_75_and_keeps_what_it_did(start, tmp_path, verb):
    if verb == "synthesize":
        corpus = make_corpus(tmp_path / "c", [f"Text {i} is about a thing. It is of 1{i} parts." for i in range(4000)])
        spec = make_spec(corpus, tmp_path / "out")
    elif verb == "inspect":
        text_files(tmp_path / "text", 40, 20_000)
        source = CorpusSource(uri=str(tmp_path / "text"))
        section = InspectRun(source=source, split=Split(), documents_per_shard=1000)
        spec = runspec("inspect", StorageSpec(uri=str(tmp_path / "out")), inspect=section)
    else:
        source = text_files(tmp_path / "text", 400, 50)
        made = produced(start, runspec("prepare", StorageSpec(uri=str(tmp_path / "tok")),
                                       tokenizer=TokenizerRun(source=source, vocab_size=300)))  # fmt: skip
        section = PackRun(source=source, tokenizer=made, sequence_length=64, objective="Pretraining")
        spec = runspec("prepare", StorageSpec(uri=str(tmp_path / "out")), pack=section)
    worker = start(spec)
    deadline = time.monotonic() + SECONDS
    while not (worker.folder / "port").exists() or not progress_of(worker)["done"]:
        assert worker.process.poll() is None, worker.log[-3000:]
        assert time.monotonic() < deadline, worker.log[-3000:]
        time.sleep(0.01)
    worker.process.terminate()
    assert worker.wait() == 75, worker.log[-3000:]
    if verb != "inspect":  # there a unit is far larger than the few documents that were read
        assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    closer = start(spec.finalizer())
    assert closer.wait() == 0
    assert closer.message["missing"] > 0


def slow_library(folder: Path, name: str) -> dict[str, str]:
    """A library in the place of another that takes for ever to load, and says when it has begun."""
    (folder / "slow").mkdir()
    marker = folder / "loading"
    (folder / "slow" / f"{name}.py").write_text(
        f"import pathlib, time\npathlib.Path({str(marker)!r}).touch()\ntime.sleep(3600)\n"
    )
    return {"PYTHONPATH": os.pathsep.join([str(folder / "slow"), str(Path(instructpt.__file__).parent.parent)])}


@pytest.mark.parametrize(
    ("library", "engine"), [("typer", "mined"), ("orjson", "mined"), ("vllm", "vllm"), ("torch", "transformers")]
)
def test_a_worker_that_is_asked_to_leave_while_it_loads_libraries_leaves_at_once(start, tmp_path, library, engine):
    """Those of the command line, of the stage, and of an engine; no lease is held then."""
    corpus = make_corpus(tmp_path / "c", ["Text of a thing."])
    model = None if engine == "mined" else tmp_path / "not-fetched-yet"
    spec = make_spec(corpus, tmp_path / "out", model=model, settings={"engine": {"name": engine}})
    worker = start(spec, **slow_library(tmp_path, library))
    deadline = time.monotonic() + SECONDS
    while not (tmp_path / "loading").exists():
        assert worker.process.poll() is None, worker.log[-3000:]
        assert time.monotonic() < deadline, worker.log[-3000:]
        time.sleep(0.01)
    worker.process.terminate()
    assert worker.wait(20.0) == 75, worker.log[-3000:]
    assert not [path for path in (tmp_path / "out").rglob("leases/*/*")]
