"""ZeRO stages, precisions and optimizers on two ranks give the losses of training the documents one by one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import instructpt

pytestmark = pytest.mark.deepspeed

CLIP = 0.5  # as in zero_ranks.py


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """One process group for all of them: what takes time is to start one."""
    script = Path(__file__).parent / "zero_ranks.py"
    root = str(Path(instructpt.__file__).parent.parent)
    env = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "PYTHONPATH": root, "OMP_NUM_THREADS": "1",
           "GLOO_SOCKET_IFNAME": "lo"}  # fmt: skip
    argv = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--local_addr=127.0.0.1",
        "--nproc_per_node=2",
    ]
    done = subprocess.run(
        [*argv, str(script), str(tmp_path_factory.mktemp("parts"))],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_zero_stage_has_the_losses_of_the_documents_one_by_one(found, stage, optimizer):
    wanted = found[f"documents-{optimizer}"]
    assert wanted[-1] < wanted[0]
    assert found[f"{stage}-fp32-{optimizer}"] == pytest.approx(wanted, abs=2e-5)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_norm_is_that_of_all_documents_and_is_clipped(found, stage):
    before, after = found[f"clipped-{stage}"]
    assert before == pytest.approx(found["norms-adamw"][0], rel=1e-4)
    assert before > CLIP
    assert after == pytest.approx(CLIP, rel=1e-3)


@pytest.mark.parametrize("way", ["1-bf16-adamw", "2-bf16-adamw", "3-bf16-adamw", "1-bf16-adafactor"])
def test_bf16_stays_near_fp32(found, way):
    wanted = found[f"documents-{way.split('-')[-1]}"]
    assert found[way] != wanted
    assert found[way] == pytest.approx(wanted, abs=3e-2)


def test_the_state_of_adafactor_goes_from_one_stage_to_another(found):
    assert found["moved-adafactor"] == pytest.approx(found["documents-adafactor"], abs=2e-5)
