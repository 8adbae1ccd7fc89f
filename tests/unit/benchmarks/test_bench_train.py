from __future__ import annotations

import json

import bench_train
import pytest
from train_fixture import Job, texts


def run(group: str, arm: str, repetition: int = 0, **fields: object) -> dict[str, object]:
    return {"group": group, "arm": arm, "repetition": repetition, "seconds": 2.0, "tokens": 1000, **fields}


def test_ours_is_compared_with_the_run_beside_it():
    runs = [
        run("loop", "bare", 0), run("loop", "ours", 0, seconds=2.5),
        run("loop", "bare", 1, seconds=4.0), run("loop", "ours", 1, seconds=4.0),
        run("peers", "ours", 0, seconds=100.0),
    ]  # fmt: skip
    found = bench_train.ratios(runs)
    assert found.medians == {"ours_over_bare": 0.9}
    assert found.spread["ours_over_bare"]["runs"] == 2


def test_useful_tokens_count_and_not_places_in_rows():
    runs = [run("packing", "bare"), run("packing", "padded", tokens=500), run("packing", "concatenated", seconds=1.9)]
    found = bench_train.ratios(runs).medians
    assert found["packed_over_padded"] == 2.0
    assert found["packed_over_concatenated"] == 0.95


def test_the_loss_in_pieces_is_compared_in_memory_and_value():
    runs = [
        run("loss", "whole", loss=10.0, peak_bytes=100), run("loss", "chunked", loss=10.0000004, peak_bytes=40),
    ]  # fmt: skip
    found = bench_train.ratios(runs).medians
    assert found["chunked_over_whole_peak_memory"] == 0.4
    assert found["chunked_loss_difference"] == pytest.approx(4e-7, rel=1e-3)


def test_groups_are_measured_anew_or_added_to(tmp_path):
    path = tmp_path / "train.json"
    assert bench_train.earlier(path, []) == ([], {})
    result = {
        "runs": [run("loop", "bare", 3), run("loss", "whole")],
        "environment": {"groups": {"loop": [1], "loss": [2]}},
    }
    path.write_text(json.dumps(result))
    runs, groups = bench_train.earlier(path, ["loss"])
    assert (runs, groups) == ([run("loop", "bare", 3)], {"loop": [1]})
    assert bench_train.next_repetition(runs, "loop") == 4
    assert bench_train.next_repetition(runs, "loss") == 0


def test_an_unknown_group_is_refused():
    with pytest.raises(SystemExit):
        bench_train.parse(["--groups", "loops"])
    assert bench_train.parse([]).groups == list(bench_train.GROUPS)


def test_a_job_travels_as_json_and_text_is_drawn_from_its_seed():
    job = Job(
        arm="ours", folder="/f", output="/o", steps=20, warm_up=4, length=256, rows=16, micro_rows=8, every=20
    )  # fmt: skip
    assert Job.from_json(job.to_json()) == job
    assert job.total == 24
    assert texts(3) == texts(3)
    assert all(10 <= len(text.split()) <= 500 for text in texts(20))
