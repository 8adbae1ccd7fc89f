from __future__ import annotations

import json

import pytest

from instructpt.telemetry.progress import Progress
from instructpt.training.metrics import (
    Recorder,
    StepResult,
    flops_per_token,
    format_line,
    measured_peak,
    peak_flops,
    summary,
)


def result(step=3, loss=1.5):
    return StepResult(step=step, loss=loss, learning_rate=1e-3, grad_norm=0.25, tokens=512, loss_tokens=500)


def test_fields_of_the_line_stand_in_their_order():
    line = format_line(result(), 120, 2**30, 12345.6, 3.5e12, 0.421)
    places = [line.index(word) for word in ("step", "loss", "grad norm", "memory", "tok/s", "TFLOPS", "MFU")]
    assert places == sorted(places)
    assert "12,346 tok/s" in line
    assert "3.500 TFLOPS" in line
    assert "42.1 %" in line
    assert "MFU" not in format_line(result(), 120, 2**30, 1.0, 1.0, None)


def test_lines_are_aligned():
    short, long = (
        format_line(result(1, 10.0), 120, 2**30, 1.0, 1.0, None),
        format_line(result(99), 120, 1, 9e6, 9e14, None),
    )
    assert len(short) == len(long)


def test_times_stay_out_of_metrics(tmp_path):
    progress = Progress()
    recorder = Recorder(steps=2, flops_per_token=1.0, peak_flops=None, progress=progress)
    for step in (1, 2):
        recorder.begin()
        recorder.end(result(step), memory_bytes=1, data_seconds=0.0)
    recorder.write(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert set(lines[0]) == {"step", "loss", "learning_rate", "grad_norm", "tokens", "loss_tokens"}
    assert {"seconds", "tokens_per_second"} < set(
        json.loads((tmp_path / "throughput.jsonl").read_text().splitlines()[0])
    )
    shown = progress.snapshot()
    assert (shown["done"], shown["total"], shown["unit"], shown["gauges"]["loss"]) == (2, 2, "steps", 1.5)
    again = Recorder(steps=2, flops_per_token=1.0, peak_flops=None, progress=progress)
    again.restore(tmp_path)
    assert (again.results, again.losses()) == (recorder.results, [1.5, 1.5])


def test_a_validation_is_recorded_without_times_and_comes_back(tmp_path):
    progress = Progress()
    recorder = Recorder(steps=2, flops_per_token=1.0, peak_flops=None, progress=progress)
    assert recorder.validation_scores() == {}
    recorder.write(tmp_path)
    assert not (tmp_path / "validation.jsonl").exists()
    recorder.validated(1, 3.0, 40, 0.5)
    recorder.validated(2, 2.5, 40, 0.5)
    recorder.write(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "validation.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 3.0, "loss_tokens": 40}, {"step": 2, "loss": 2.5, "loss_tokens": 40}]
    assert recorder.validation_scores() == {"validation_loss": 2.5}
    assert progress.snapshot()["gauges"]["validation_loss"] == 2.5
    again = Recorder(steps=2, flops_per_token=1.0, peak_flops=None, progress=progress)
    again.restore(tmp_path)
    assert again.validation == recorder.validation


def test_a_measured_peak_is_a_rate():
    assert measured_peak(size=32, turns=1) > 0


def test_summary_and_flops():
    assert summary([9.0, *range(1, 21)]) == {"first_loss": 9.0, "final_loss": 15.5}
    assert flops_per_token(1000, 2, 16, 64) == 6000 + 12 * 2 * 16 * 64
    assert peak_flops("NVIDIA H100 80GB HBM3", 8) == pytest.approx(8 * 989e12)
    assert peak_flops("some card", 1) is None
