from __future__ import annotations

import json

import bench_train
import grouped
import pytest
import train_goodput
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


def test_a_stall_is_compared_with_the_checkpoint_beside_it():
    seconds = {"deepspeed_seconds": 0.2, "copy_seconds": 0.02, "step_seconds": 0.5, "slowed_seconds": 0.6}
    found = bench_train.ratios([run("checkpoint", "stage-1", stall_seconds=0.004, **seconds)]).medians
    assert found["checkpoint_stall_over_save"] == 0.02
    assert found["checkpoint_copy_over_save"] == 0.1
    assert found["step_with_checkpoint_over_without"] == 1.2


def test_goodput_counts_each_step_once_and_losses_must_be_the_same():
    def life(group: str, losses: list[float], kills: int, **seconds: float) -> dict[str, object]:
        told = {"loss_digests": " ".join(train_goodput.digests(losses)), "kills": kills, "restart_seconds": 15.0}
        return run(group, group, **told, **seconds)

    losses = [1.0 / n for n in range(1, 101)]
    runs = [
        life("undisturbed", losses, 0, useful_seconds=100.0, wall_seconds=100.0),
        life("killed-300", losses[:80], 1, useful_seconds=90.0, wall_seconds=100.0),
        life("killed-90", [*losses[:50], 0.5, *losses[51:]], 3, useful_seconds=70.0, wall_seconds=100.0),
    ]
    assert train_goodput.differing(runs) == [0.0, 3.0]
    found = bench_train.ratios(runs).medians
    assert (found["goodput_under_kills"], found["goodput_under_kills_90"]) == (0.9, 0.7)
    assert found["restart_seconds"] == 15.0
    assert train_goodput.differing(runs[1:]) == []


def test_the_parts_of_a_restart_add_up():
    at = {"gone": 1.0, "started": 1.5, "resuming": 4.0, "engine": 12.0, "first_step": 14.0}
    parts = train_goodput.Restart(step=7, at=at).parts(step_seconds=0.5)
    assert list(parts.values()) == [1.0, 0.5, 2.5, 8.0, 1.5]


def test_groups_are_measured_anew_or_added_to(tmp_path):
    path = tmp_path / "train.json"
    assert grouped.earlier(path, []) == ([], {})
    result = {
        "runs": [run("loop", "bare", 3), run("loss", "whole")],
        "environment": {"groups": {"loop": [1], "loss": [2]}},
    }
    path.write_text(json.dumps(result))
    runs, groups = grouped.earlier(path, ["loss"])
    assert (runs, groups) == ([run("loop", "bare", 3)], {"loop": [1]})
    assert grouped.next_repetition(runs, "loop") == 4
    assert grouped.next_repetition(runs, "loss") == 0


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
