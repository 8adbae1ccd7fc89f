"""The speed of a stage, by what its worker has seen of it."""

from __future__ import annotations

from instructpt.telemetry.progress import WINDOW_SECONDS, Progress


def test_the_speed_is_that_of_the_window() -> None:
    now = [0.0]
    progress = Progress(clock=lambda: now[0])
    progress.update(done=100, total=10_000, unit="steps")  # where it was resumed
    assert progress.snapshot()["per_second"] == 0.0
    for now[0] in range(1, 601):  # one step a second for ten minutes ...
        progress.update(done=100 + int(now[0]))
    assert abs(progress.snapshot()["per_second"] - 1.0) < 0.02
    for second in range(1, int(WINDOW_SECONDS) + 1):  # ... then one every ten seconds
        now[0] = 600.0 + second
        progress.update(done=700 + second // 10)
    assert abs(progress.snapshot()["per_second"] - 0.1) < 0.02


def test_a_stage_that_stands_still_gets_slower() -> None:
    now = [0.0]
    progress = Progress(clock=lambda: now[0])
    progress.update(done=0, total=10, unit="shards")
    now[0] = 10.0
    progress.update(done=5)
    assert progress.snapshot()["per_second"] == 0.5
    now[0] = 100.0
    assert progress.snapshot()["per_second"] == 0.05


def test_a_note_stays_until_it_is_taken_away_and_is_short() -> None:
    progress = Progress(clock=lambda: 0.0)
    progress.update(notes={"checkpoint": "x" * 1000, "resume": "refused"})
    progress.update(done=1)
    assert {n: len(t) for n, t in progress.snapshot()["notes"].items()} == {"checkpoint": 400, "resume": 7}
    progress.update(notes={"checkpoint": None})
    assert progress.snapshot()["notes"] == {"resume": "refused"}


def test_another_unit_begins_anew() -> None:
    now = [0.0]
    progress = Progress(clock=lambda: now[0])
    progress.update(done=1_000_000, total=2_000_000, unit="bytes")
    now[0] = 1.0
    progress.update(done=1, total=4, unit="shards")
    assert progress.snapshot()["per_second"] == 0.0
