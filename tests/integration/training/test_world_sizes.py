"""A training that goes on with another number of ranks, two, one, two, in each ZeRO stage and from one to another.

Two processes join once and train what they are told, so that libraries load once for all stages.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from s3servers import free_port

import instructpt
from instructpt.api.runspec import RunSpec
from instructpt.api.v1alpha1.trainingjob import CheckpointSpec, DeepSpeed
from instructpt.storage import open_store
from instructpt.telemetry.progress import Progress
from instructpt.training import entry
from instructpt.training.checkpoint import latest_step
from instructpt.training.workspace import prepare_workspace

pytestmark = pytest.mark.deepspeed

Train = Callable[[RunSpec, Path, int], list[list[int]]]


def stopping(progress: Progress, after: int) -> Callable[[], bool]:
    """Asks to leave in step ``after``."""
    return lambda: progress.snapshot()["done"] >= after - 1


def train_here(spec: RunSpec, scratch: Path, after: int, *, rank: int = 0, ranks: int = 1) -> list[list[int]]:
    """Train as one rank until ``after`` steps are done; the rows of each step, as all ranks see them."""
    from instructpt.training import loop
    from instructpt.training.engine import Ranks

    seen: list[list[int]] = []
    get = loop.Ahead.get

    def noted(self, number):
        slots, *more = get(self, number)
        seen.append([number, *(slot.row for slot in slots)])
        return slots, *more

    loop.Ahead.get = noted
    progress = Progress()
    # Rank 0 counts steps; the others are asked through it, as in a cluster where one node alone is drained.
    stop = stopping(progress, after) if rank == 0 else lambda: False
    try:
        workspace = prepare_workspace(spec, open_store(spec.output.uri), scratch)
        around = loop.Surroundings(
            ranks=Ranks(rank=rank, local_rank=rank, world_size=ranks), stop=stop, progress=progress
        )
        with contextlib.suppress(entry.Preempted):
            loop.train(spec, workspace, around)
    finally:
        loop.Ahead.get = get
    return seen


def main() -> None:
    """One of two ranks: a line says what to train, a line tells the rows of each step."""
    rank, ranks = int(sys.argv[1]), 2
    out = os.dup(1)
    os.dup2(2, 1)  # libraries print to stdout
    for line in sys.stdin:
        asked = json.loads(line)
        spec = RunSpec.model_validate_json(asked["spec"])
        rows = train_here(spec, Path(asked["scratch"]) / str(rank), asked["after"], rank=rank, ranks=ranks)
        os.write(out, json.dumps(rows).encode() + b"\n")


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Iterator[Train]:
    folder = tmp_path_factory.mktemp("pair")
    root = Path(instructpt.__file__).parent.parent
    env = {
        **os.environ, "PYTHONPATH": os.pathsep.join(str(p) for p in (root, root / "tests")), "INSTRUCTPT_THREADS": "2",
        "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "GLOO_SOCKET_IFNAME": "lo",
        "DS_ACCELERATOR": "cpu",
    }  # fmt: skip
    logs = [folder / str(rank) for rank in (0, 1)]
    with contextlib.ExitStack() as stack:
        processes = [
            subprocess.Popen(
                [sys.executable, __file__, str(rank)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=stack.enter_context(logs[rank].open("w")), text=True, env={**env, "RANK": str(rank)},
            )
            for rank in (0, 1)
        ]  # fmt: skip
        for process in processes:
            stack.enter_context(process)
            stack.callback(process.kill)

        def train(spec: RunSpec, scratch: Path, after: int) -> list[list[int]]:
            asked = {"spec": spec.to_json(), "scratch": str(scratch), "after": after}
            for process in processes:
                assert process.stdin is not None
                process.stdin.write(json.dumps(asked) + "\n")
                process.stdin.flush()
            told = [process.stdout.readline() for process in processes if process.stdout is not None]
            assert all(told), "".join(log.read_text()[-3000:] for log in logs)
            assert told[0] == told[1]
            return json.loads(told[0])

        yield train


@pytest.fixture(scope="module")
def undisturbed(train_spec, tmp_path_factory) -> tuple[list[list[int]], list[float]]:
    root = tmp_path_factory.mktemp("whole")
    spec = train_spec(root / "out", checkpoint=CheckpointSpec(every_steps=100))
    return train_here(spec, root / "s", 100), losses(spec)


def losses(spec: RunSpec) -> list[float]:
    text = open_store(spec.output.uri).get("metrics.jsonl").decode()
    return [json.loads(line)["loss"] for line in text.splitlines()]


@pytest.mark.parametrize("stages", [(1, 1, 1), (2, 3, 2), (3, 2, 3)], ids=lambda s: "-".join(map(str, s)))
def test_two_one_and_two_ranks_train_as_one_does(train_spec, pair, undisturbed, tmp_path, stages):
    rows: list[list[int]] = []
    for train, stage, after in zip((pair, train_here, pair), stages, (3, 6, 100), strict=True):
        spec = train_spec(
            tmp_path / "out", deepspeed=DeepSpeed(zero_stage=stage), checkpoint=CheckpointSpec(every_steps=100)
        )
        rows += train(spec, tmp_path / "s", after)
        if after < 100:
            assert latest_step(open_store(spec.output.uri)) == after
    assert rows == undisturbed[0]
    found = losses(spec)
    assert len(found) == len(undisturbed[1])
    assert max(abs(a - b) for a, b in zip(found, undisturbed[1], strict=True)) < 1e-3
    assert entry.finalize(spec, None).missing == 0


if __name__ == "__main__":
    main()
