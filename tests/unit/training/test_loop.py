from __future__ import annotations

import json

import pytest
import torch

from instructpt.corpus.manifest import MANIFEST
from instructpt.errors import EnvironmentNotReadyError
from instructpt.storage import MemoryStore
from instructpt.training.engine import Ranks
from instructpt.training.loop import choose_device
from instructpt.training.outputs import clear


class Section:
    def __init__(self, gpus: int, processes: int) -> None:
        self.gpus_per_node = gpus
        self.processes_per_node = processes


@pytest.mark.parametrize(
    ("there", "gpus", "processes", "wanted"),
    [(0, 0, 1, "cpu"), (1, 0, 1, "cuda"), (1, 0, 2, "cpu"), (2, 0, 2, "cuda"), (4, 2, 1, "cuda"), (3, 0, 4, "cpu")],
)
def test_all_ranks_of_a_node_have_a_gpu_or_none_has(monkeypatch, there, gpus, processes, wanted):
    # No machine of the tests has several GPUs.
    monkeypatch.delenv("INSTRUCTPT_DEVICE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: None)
    local = gpus or processes
    ranks = [Ranks(rank=r, world_size=local, local_rank=r) for r in range(local)]
    assert {choose_device(Section(gpus, processes), rank).type for rank in ranks} == {wanted}
    monkeypatch.setenv("INSTRUCTPT_DEVICE", "cpu")
    assert choose_device(Section(gpus, processes), ranks[0]).type == "cpu"


def test_more_gpus_than_there_are_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EnvironmentNotReadyError, match="asks for 2 GPUs"):
        choose_device(Section(2, 1), Ranks())


def test_another_export_is_cleared_and_what_no_training_wrote_stays():
    store = MemoryStore()
    record = {"files": [["config.json", 1, "x"], ["odd.bin", 1, "x"]]}
    store.put("work/other/result.json", json.dumps(record).encode())
    stays = ["checkpoints/LATEST", "config.json", "notes.txt", "sub/model.safetensors", "work/other/leases/1"]
    goes = [MANIFEST, "odd.bin", "merges.txt", "model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    for key in [*stays, *goes]:
        store.put(key, b"1")
    clear(store, keep={"config.json"})
    assert [info.key for info in store.list()] == stays
