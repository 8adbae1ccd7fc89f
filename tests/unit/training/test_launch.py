from __future__ import annotations

import json
import socket

import pytest
import torch

from instructpt.api.runspec import InitRun, ResolvedInput, TrainRun
from instructpt.api.v1alpha1.trainingjob import CheckpointSpec, DeepSpeed, Optimizer, Schedule
from instructpt.errors import ConfigError, EnvironmentNotReadyError, TrainingError
from instructpt.telemetry.context import WorkerContext
from instructpt.telemetry.progress import Progress
from instructpt.training.errors import PeerLostError
from instructpt.training.launch import _cause, _forward, command, environment
from instructpt.training.nodes import Nodes
from instructpt.training.rank import MET, OUTCOME, _of_a_peer


def section(**changes):
    fields = {
        "objective": "Pretraining", "init": InitRun(config={}), "tokenizer": ResolvedInput(uri="t"), "sources": (),
        "tokens": 1, "sequence_length": 64, "global_batch_rows": 8, "micro_batch_rows": 4, "optimizer": Optimizer(),
        "schedule": Schedule(), "gradient_clip": 1.0, "precision": "auto", "deepspeed": DeepSpeed(),
        "checkpoint": CheckpointSpec(), "seed": 1,
    }  # fmt: skip
    return TrainRun(**{**fields, **changes})


def test_one_node_needs_no_address():
    argv = command(section(processes_per_node=2), None)
    assert "--max-restarts=0" in argv
    assert "--nproc_per_node=2" in argv
    assert "--standalone" in argv
    assert argv[-2:] == ["-m", "instructpt.training.rank"]


NODES = {"MASTER_ADDR": "m-0", "MASTER_PORT": "23456", "RANK": "3"}


def test_several_nodes_take_the_jobs_addresses():
    argv = command(section(nodes=4, gpus_per_node=8), Nodes.from_environment(4, 0, NODES))
    for wanted in ("--nnodes=4", "--node_rank=3", "--master_addr=m-0", "--master_port=23456", "--nproc_per_node=8"):
        assert wanted in argv


def test_the_first_node_speaks_to_itself_by_loopback():
    """Its own name is in the DNS only after its pod is ready."""
    argv = command(section(nodes=4), Nodes.from_environment(4, 0, {**NODES, "RANK": "0"}))
    assert "--master_addr=127.0.0.1" in argv
    assert "--node_rank=0" in argv


def test_several_nodes_without_an_address_are_refused():
    with pytest.raises(EnvironmentNotReadyError, match="MASTER_ADDR"):
        Nodes.from_environment(2, 0, {})


def test_a_rank_that_is_no_node_is_refused():
    with pytest.raises(ConfigError, match="RANK is 3"):
        Nodes.from_environment(2, 0, NODES)


def test_a_name_that_never_comes_is_named_after_the_time():
    nodes = Nodes(count=2, rank=1, address="no-such-node.invalid", port=1, seconds=0)
    with pytest.raises(TrainingError, match=r"no address for no-such-node\.invalid within 0 s") as error:
        nodes.await_name(lambda _: False)
    assert error.value.retryable


def test_a_name_is_waited_for_until_it_comes_or_the_worker_is_asked_to_leave(monkeypatch):
    asked = []

    def lookup(name, port, **_):
        asked.append(name)
        if len(asked) < 3:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("10.1.2.3", port))]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    nodes = Nodes(count=2, rank=1, address="m-0", port=23456, seconds=60)
    assert nodes.await_name(lambda _: False) == "10.1.2.3"
    assert asked == ["m-0"] * 3
    asked.clear()
    assert nodes.await_name(lambda _: True) is None
    assert asked == ["m-0"]


def test_gloo_gets_the_interface_that_leads_to_the_first_node(monkeypatch):
    for rank in (0, 1):
        assert Nodes(count=2, rank=rank, address="127.0.0.1", port=1, seconds=1).interface("127.0.0.1") == "lo"
    for name in ("localhost", "no-such-node.invalid"):
        assert Nodes(count=2, rank=0, address=name, port=1, seconds=1).interface(name) is None
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    assert environment(section(nodes=2), "eth0")["GLOO_SOCKET_IFNAME"] == "eth0"
    assert "GLOO_SOCKET_IFNAME" not in environment(section(nodes=2), None)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "net1")
    assert environment(section(nodes=2), "eth0")["GLOO_SOCKET_IFNAME"] == "net1"


def test_options_of_torchrun_that_a_launcher_sets_do_not_reach_it(monkeypatch):
    monkeypatch.setenv("PET_NNODES", "7")
    assert not [name for name in environment(section(nodes=2)) if name.startswith("PET_")]


def test_ranks_share_the_threads_and_forget_the_launcher_above(monkeypatch):
    monkeypatch.setenv("INSTRUCTPT_THREADS", "8")
    monkeypatch.setenv("RANK", "3")
    env = environment(section(processes_per_node=4))
    assert env["OMP_NUM_THREADS"] == "2"
    assert "RANK" not in env


def test_figures_of_the_ranks_go_on_and_a_note_of_theirs_goes_when_it_is_over(tmp_path):
    ctx, ranks = WorkerContext(worker_id="w", scratch=tmp_path), Progress()
    for notes in ({"checkpoint": "storage is away"}, {"checkpoint": None}):
        ranks.update(done=3, total=9, unit="steps", gauges={"loss": 2.0}, notes=notes)
        (tmp_path / "progress.json").write_text(json.dumps(ranks.snapshot()))
        _forward(tmp_path / "progress.json", ctx)
        found = ctx.progress.snapshot()
        assert (found["done"], found["gauges"], found["notes"]) == (3, {"loss": 2.0}, ranks.snapshot()["notes"])


def test_a_cause_that_only_training_knows_comes_back_from_a_rank(tmp_path):
    outcome = {"type": "PeerLostError", "message": "gone", "retryable": True}
    (tmp_path / OUTCOME).write_text(json.dumps(outcome))
    error = _cause(tmp_path, 1)
    assert isinstance(error, PeerLostError)
    assert error.retryable


def test_without_a_cause_it_depends_on_whether_the_nodes_had_met(tmp_path):
    nodes = Nodes.from_environment(4, 0, NODES)
    assert isinstance(_cause(tmp_path, 1, nodes), PeerLostError)
    (tmp_path / MET).touch()
    killed = _cause(tmp_path, 1, nodes)
    assert type(killed) is TrainingError
    assert "it was killed" in killed.message


@pytest.mark.parametrize(
    ("error", "of_a_peer"),
    [
        (RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer"), True),
        (torch.distributed.DistBackendError("NCCL error: remote process exited"), True),
        (RuntimeError("shape mismatch"), False),
        (OSError("gloo/"), False),
    ],
)
def test_a_failed_collective_speaks_of_a_peer(error, of_a_peer):
    assert _of_a_peer(error) is of_a_peer
