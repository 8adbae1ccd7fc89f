"""What a worker leaves in its termination message."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from instructpt.cli import worker
from instructpt.errors import TrainingError
from instructpt.telemetry.context import WorkerContext
from instructpt.training.errors import Preempted

NOTE = "checkpoint step-8 is refused: rank-00000-of-00002.safetensors is truncated: 7 of 9 bytes"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Preempted("stopped after step 9 of 50, 5 steps are lost: the disk is full", retryable=True), 75),
        (TrainingError("x" * 9000, retryable=True), 1),
    ],
)
def test_how_far_it_was_and_what_it_notes_stand_beside_the_error(tmp_path: Path, monkeypatch, error, code) -> None:
    monkeypatch.setenv("INSTRUCTPT_TERMINATION_LOG", str(tmp_path / "message"))
    ctx = WorkerContext(worker_id="w", scratch=tmp_path)
    ctx.progress.update(done=9, total=50, unit="steps", notes={"resume": NOTE, "checkpoint": "é" * 9000})
    assert worker._failed(error, ctx, "TrainingJob") == code
    data = (tmp_path / "message").read_bytes()
    assert len(data) <= 4096
    message = json.loads(data)
    assert (message["done"], message["unit"], message["notes"]["resume"]) == (9, "steps", NOTE)
    assert message["error"]["message"].startswith(error.message[:1000])


def test_nothing_is_told_before_anything_was_done(tmp_path: Path) -> None:
    assert worker._how_far(WorkerContext(worker_id="w", scratch=tmp_path)) == {}
