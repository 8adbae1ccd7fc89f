"""Training on two nodes: two workers as two pods run them, a scratch folder each, S3 the only thing they share."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from s3servers import S3Server, free_port

import instructpt
from instructpt.api.base import StorageSpec
from instructpt.api.runspec import RunSpec, TrainSource
from instructpt.api.v1alpha1.trainingjob import CheckpointSpec, DeepSpeed
from instructpt.storage import open_store
from instructpt.telemetry.context import WorkerContext
from instructpt.training import entry

pytestmark = [pytest.mark.deepspeed, pytest.mark.slow, pytest.mark.timeout(900)]

SECONDS = 150.0
STEPS = 80  # 40,000 tokens in steps of 8 rows of at most 64


@pytest.fixture(scope="module", autouse=True)
def access(s3_versitygw) -> Iterator[None]:
    """This process reaches the server by the default chain, and is as wide as the workers."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**s3_versitygw.env, "INSTRUCTPT_THREADS": "2"}.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def spec_on(s3_versitygw, tiny, train_spec) -> Callable[..., RunSpec]:
    """A RunSpec whose inputs and output lie on the server."""
    for name, made in (("tokenizer", tiny.tokenizer), ("tokens", tiny.tokens)):
        store = open_store(f"s3://{s3_versitygw.bucket}/inputs/{name}")
        for path in (p for p in Path(made.uri).rglob("*") if p.is_file()):
            store.put_file(str(path.relative_to(made.uri)), path)
    root = f"s3://{s3_versitygw.bucket}"
    source = {"name": "text", "weight": 1.0, "max_repeats": 30, "digest": tiny.tokens.digest}

    def make(output: str, **changes) -> RunSpec:
        spec = train_spec(
            "unused",
            tokenizer=tiny.tokenizer.model_copy(update={"uri": f"{root}/inputs/tokenizer"}),
            sources=(TrainSource(uri=f"{root}/inputs/tokens", **source),),
            deepspeed=DeepSpeed(zero_stage=2),
            **{"tokens": 40_000, "checkpoint": CheckpointSpec(every_steps=5, keep=2), **changes},
        )
        return spec.model_copy(update={"output": StorageSpec(uri=f"{root}/{output}")})

    return make


@dataclass
class Node:
    """One worker, as the training operator starts it in a pod."""

    spec: RunSpec
    folder: Path
    rank: int
    port: int
    env: dict[str, str] = field(default_factory=dict)
    address: str = "127.0.0.1"
    prefix: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        runspec = self.folder / "runspec.json"
        runspec.write_text(self.spec.to_json())
        argv = [sys.executable, "-m", "instructpt", "worker", "train", "--run-spec", str(runspec)]
        self.log = self.folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*self.prefix, *argv, "--hash", self.spec.hash],
                env={
                    "PATH": os.environ["PATH"], "HOME": str(self.folder), **self.env,
                    "PYTHONPATH": str(Path(instructpt.__file__).parent.parent), "OMP_WAIT_POLICY": "PASSIVE",
                    "INSTRUCTPT_SCRATCH": str(self.folder / "scratch"), "INSTRUCTPT_THREADS": "1",
                    "INSTRUCTPT_TERMINATION_LOG": str(self.folder / "termination"),
                    "INSTRUCTPT_PORT_FILE": str(self.folder / "port"),
                    "MASTER_ADDR": self.address, "MASTER_PORT": str(self.port), "RANK": str(self.rank),
                    "WORLD_SIZE": "2", "PET_NNODES": "2", "PET_NODE_RANK": str(self.rank),
                },
                stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            )  # fmt: skip

    def wait(self, seconds: float = SECONDS) -> int:
        try:
            return self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"node {self.rank} still runs:\n{self.log.read_text()[-4000:]}") from None

    @property
    def message(self) -> dict:
        return json.loads((self.folder / "termination").read_text())["error"]


@contextlib.contextmanager
def two_nodes(spec: RunSpec, folder: Path, env: dict[str, str]) -> Iterator[list[Node]]:
    port = free_port()
    nodes = [Node(spec, folder / str(rank), rank, port, env) for rank in (0, 1)]
    try:
        yield nodes
    finally:
        for node in nodes:
            if node.process.poll() is None:
                node.process.kill()
            node.process.wait()


def latest(spec: RunSpec) -> int:
    store = open_store(spec.output.uri)
    return json.loads(store.get("checkpoints/LATEST"))["step"] if store.exists("checkpoints/LATEST") else 0


def until(condition: Callable[[], bool], nodes: list[Node]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        ended = [node for node in nodes if node.process.poll() is not None]
        assert not ended, f"node {ended[0].rank} ended:\n{ended[0].log.read_text()[-4000:]}"
        assert time.monotonic() < deadline, nodes[0].log.read_text()[-4000:]
        time.sleep(0.02)


def context(folder: Path) -> WorkerContext:
    folder.mkdir(parents=True, exist_ok=True)
    return WorkerContext(worker_id="w", scratch=folder)


def exported(spec: RunSpec) -> tuple[bytes, bytes]:
    """Weights and the record of all steps."""
    store = open_store(spec.output.uri)
    return store.get("model.safetensors"), store.get("metrics.jsonl")


@pytest.fixture(scope="module")
def one_node(spec_on, tmp_path_factory) -> tuple[bytes, bytes]:
    """The same two ranks on one node, undisturbed."""
    spec, folder = spec_on("one", processes_per_node=2), tmp_path_factory.mktemp("one")
    entry.run(spec, context(folder))
    assert entry.finalize(spec, context(folder)).missing == 0
    return exported(spec)


def test_two_nodes_train_as_one_node_with_two_ranks(spec_on, one_node, s3_versitygw: S3Server, tmp_path):
    spec = spec_on("both", nodes=2)
    with two_nodes(spec, tmp_path, s3_versitygw.env) as nodes:
        assert [node.wait() for node in nodes] == [0, 0], nodes[0].log.read_text()[-4000:]
    result = entry.finalize(spec, context(tmp_path / "f"))
    assert (result.missing, result.counts["steps"]) == (0, STEPS)
    assert exported(spec) == one_node
    # None at the end: the export stands there. One that was due while another was under way came a little later.
    assert STEPS - 5 <= latest(spec) < STEPS
    # Each node fetched its own inputs; only the first wrote what was exported.
    assert list((tmp_path / "1" / "scratch" / "tokens").iterdir())
    assert not (tmp_path / "1" / "scratch" / "export").exists()


def test_a_killed_node_ends_the_other_with_its_reason_and_both_resume(
    spec_on, one_node, s3_versitygw: S3Server, tmp_path
):
    spec = spec_on("killed", nodes=2)
    with two_nodes(spec, tmp_path / "first", s3_versitygw.env) as nodes:
        until(lambda: latest(spec) >= 5, nodes)
        os.kill(nodes[1].process.pid, signal.SIGKILL)
        assert nodes[0].wait() == 1
        assert nodes[0].message["type"] == "PeerLostError"
        assert "is gone or does not answer" in nodes[0].message["message"]
        assert nodes[0].message["retryable"]
    step = latest(spec)
    assert 5 <= step < STEPS
    assert entry.finalize(spec, context(tmp_path / "f")).missing == 1
    with two_nodes(spec, tmp_path / "second", s3_versitygw.env) as nodes:
        assert [node.wait() for node in nodes] == [0, 0], nodes[0].log.read_text()[-4000:]
        assert all(f"resuming after step {step}" in node.log.read_text() for node in nodes)
    assert entry.finalize(spec, context(tmp_path / "f")).missing == 0
    assert exported(spec) == one_node


@pytest.mark.parametrize("asked", [(0, 1), (1,)], ids=["both", "the second alone"])
def test_nodes_that_are_asked_to_leave_keep_a_checkpoint(spec_on, s3_versitygw: S3Server, tmp_path, asked):
    rare = CheckpointSpec(every_steps=1000, keep=2)
    spec = spec_on(f"asked-{len(asked)}", nodes=2, tokens=200_000, checkpoint=rare)
    with two_nodes(spec, tmp_path, s3_versitygw.env) as nodes:
        until(lambda: "step   3/" in nodes[0].log.read_text(), nodes)
        for rank in asked:
            nodes[rank].process.terminate()
        assert [node.wait() for node in nodes] == [75, 75], nodes[0].log.read_text()[-4000:]
    assert latest(spec) >= 3
    assert all(f"stopped after step {latest(spec)} of" in node.message["message"] for node in nodes)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_node_that_waits_for_the_others_leaves_at_once(spec_on, s3_versitygw: S3Server, tmp_path, rank):
    spec = spec_on(f"alone-{rank}", nodes=2)
    address = "127.0.0.1" if rank == 0 else "no-such-node.invalid"
    node = Node(spec, tmp_path / "n", rank, free_port(), s3_versitygw.env, address)
    try:
        until(lambda: b"meets the others" in node.log.read_bytes() if rank == 0 else tokens(node), [node])
        node.process.terminate()
        assert node.wait() == 75
        assert "stopped" in node.message["message"]
    finally:
        node.process.kill()
        node.process.wait()
    assert not list(open_store(spec.output.uri).list("checkpoints/"))


def tokens(node: Node) -> bool:
    return (node.folder / "scratch" / "ranks" / "workspace.json").exists()


def test_a_node_whose_peer_never_comes_says_so_in_time(spec_on, s3_versitygw: S3Server, tmp_path):
    env = {**s3_versitygw.env, "INSTRUCTPT_MEET_SECONDS": "3"}
    nodes = [
        Node(spec_on("never-0", nodes=2), tmp_path / "0", 0, free_port(), env),
        Node(spec_on("never-1", nodes=2), tmp_path / "1", 1, free_port(), env),
        Node(spec_on("never-2", nodes=2), tmp_path / "2", 1, free_port(), env, "no-such-node.invalid"),
    ]
    try:
        assert [node.wait() for node in nodes] == [1, 1, 1]
    finally:
        for node in nodes:
            node.process.kill()
            node.process.wait()
    assert [node.message["type"] for node in nodes] == ["PeerLostError", "PeerLostError", "TrainingError"]
    assert "did not meet the others at 127.0.0.1" in nodes[0].message["message"]
    assert "no address for no-such-node.invalid within 3 s" in nodes[2].message["message"]


@pytest.fixture
def machines() -> Iterator[list[str]]:
    """Two network namespaces with a cable between them: 10.199.0.1 and 10.199.0.2."""
    if shutil.which("ip") is None:
        pytest.skip("needs ip to make network namespaces")
    names = [f"ipt{os.getpid() % 100000}-{i}" for i in (0, 1)]
    commands = [f"ip netns add {name}" for name in names]
    commands += [f"ip -n {names[0]} link add net0 type veth peer name net0 netns {names[1]}"]
    for i, name in enumerate(names):
        commands += [f"ip -n {name} addr add 10.199.0.{i + 1}/24 dev net0"]
        commands += [f"ip -n {name} link set {device} up" for device in ("lo", "net0")]
    try:
        for command in commands:
            if (
                shutil.which("ip") is None
                or subprocess.run(command.split(), capture_output=True, check=False).returncode
            ):
                pytest.skip("needs root and ip to make network namespaces")
        yield names
    finally:
        for name in names if shutil.which("ip") else []:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def test_nodes_on_two_networks_find_each_other(train_spec, machines, tmp_path):
    """The host's own name leads nowhere here, so that the interface is found by the way to the first node."""
    spec = train_spec(tmp_path / "out", nodes=2, deepspeed=DeepSpeed(zero_stage=2))
    port = free_port()
    nodes = [
        Node(spec, tmp_path / name, rank, port, {}, "10.199.0.1", ("ip", "netns", "exec", name))
        for rank, name in enumerate(machines)
    ]
    try:
        assert [node.wait() for node in nodes] == [0, 0], nodes[0].log.read_text()[-4000:]
    finally:
        for node in nodes:
            node.process.kill()
            node.process.wait()
    assert entry.finalize(spec, context(tmp_path / "f")).missing == 0
