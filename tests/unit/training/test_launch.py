from __future__ import annotations

import pytest

from instructpt.api.runspec import InitRun, ResolvedInput, TrainRun
from instructpt.api.v1alpha1.trainingjob import CheckpointSpec, DeepSpeed, Optimizer, Schedule
from instructpt.errors import EnvironmentNotReadyError
from instructpt.training.launch import command, environment


def section(**changes):
    fields = {
        "objective": "Pretraining", "init": InitRun(config={}), "tokenizer": ResolvedInput(uri="t"), "sources": (),
        "tokens": 1, "sequence_length": 64, "global_batch_rows": 8, "micro_batch_rows": 4, "optimizer": Optimizer(),
        "schedule": Schedule(), "gradient_clip": 1.0, "precision": "auto", "deepspeed": DeepSpeed(),
        "checkpoint": CheckpointSpec(), "seed": 1,
    }  # fmt: skip
    return TrainRun(**{**fields, **changes})


def test_one_node_needs_no_address():
    argv = command(section(processes_per_node=2), 0)
    assert "--max-restarts=0" in argv
    assert "--nproc_per_node=2" in argv
    assert "--standalone" in argv
    assert argv[-2:] == ["-m", "instructpt.training.rank"]


def test_several_nodes_take_the_jobs_addresses(monkeypatch):
    for name, value in {"MASTER_ADDR": "m-0", "MASTER_PORT": "23456", "RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    argv = command(section(nodes=4, gpus_per_node=8), 0)
    for wanted in ("--nnodes=4", "--node_rank=3", "--master_addr=m-0", "--master_port=23456", "--nproc_per_node=8"):
        assert wanted in argv


def test_several_nodes_without_an_address_are_refused(monkeypatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(EnvironmentNotReadyError, match="MASTER_ADDR"):
        command(section(nodes=2), 0)


def test_ranks_share_the_threads_and_forget_the_launcher_above(monkeypatch):
    monkeypatch.setenv("INSTRUCTPT_THREADS", "8")
    monkeypatch.setenv("RANK", "3")
    env = environment(section(processes_per_node=4))
    assert env["OMP_NUM_THREADS"] == "2"
    assert "RANK" not in env
