from __future__ import annotations

import itertools

import bench_io
import io_resume
import pytest


def run(case: str, arm: str, seconds: float, *, far: bool = False, repetition: int = 0) -> dict[str, object]:
    found = {"case": case, "delayed": far, "arm": arm, "repetition": repetition}
    return {**found, "seconds": seconds, "objects": 100, "bytes": 100_000}


def test_the_limit_is_the_slower_of_transfer_and_decoder_in_each_repetition():
    runs = []
    for repetition, (curl, decode) in enumerate([(1.0, 4.0), (4.0, 1.0), (1.0, 4.0)]):
        runs += [
            run("large", "curl", curl, repetition=repetition),
            run("large", "decode", decode, repetition=repetition),
        ]
        runs += [run("large", "ours", 5.0, repetition=repetition)]
    found = bench_io.ratios(runs)
    assert found.medians["ours_over_limit"] == 0.8
    assert found.spread["ours_over_limit"]["runs"] == 3
    assert "ours_over_limit_delayed" not in found.medians


def test_rates_are_compared_where_arms_fetch_different_numbers():
    few = {**run("small", "boto3", 4.0), "objects": 20}
    found = bench_io.ratios([few, run("small", "ours", 5.0), run("small", "ours", 50.0, far=True)])
    assert found.medians["ours_over_boto3_small"] == 4.0
    assert "ours_over_boto3_small_delayed" not in found.medians


def test_the_headline_names_are_those_of_the_performance_page():
    runs = [run(case, arm, 1.0) for case in ("large", "small") for arm in ("curl", "decode", "boto3", "ours")]
    assert {"ours_over_limit", "ours_over_boto3_small"} <= bench_io.ratios(runs).medians.keys()


def test_resume_and_orders():
    runs = [
        {"case": "resume", "arm": "ours", "step": 1_000, "repetition": 0, "seconds": 0.2},
        {"case": "resume", "arm": "ours", "step": 1_000_000, "repetition": 0, "seconds": 0.3},
        {"case": "resume", "arm": "replay", "step": 1_000, "repetition": 0, "seconds": 2.0},
        {"case": "order", "world_size": 1, "digest": "a", "repetition": 0},
        {"case": "order", "world_size": 2, "digest": "b", "repetition": 0},
    ]
    found = bench_io.ratios(runs).medians
    assert found["resume_late_over_early"] == 1.5
    assert found["resume_replay_over_ours"] == 10.0
    assert found["resume_seconds_late"] == 0.3
    assert found["orders_over_world_sizes"] == 2.0


@pytest.mark.parametrize("scale", [1.0, 0.001])
def test_every_case_has_ours_and_what_it_is_compared_with(scale):
    for case in bench_io.cases(scale):
        assert {"curl", "boto3", "ours"} <= case.objects.keys()
        assert all(count >= 1 for count in case.objects.values())
    full = {(case.name, case.delayed): case.objects["ours"] for case in bench_io.cases(1.0)}
    assert (full["large", False], full["small", False]) == (64, 20_000)


def test_small_objects_have_their_size_and_are_text():
    for body in itertools.islice(bench_io.small_bodies(), 50):
        assert len(body) == bench_io.SMALL_BYTES
        body.decode()


def test_the_order_of_rows_is_the_same_at_every_world_size(tmp_path):
    io_resume.write_tokens(tmp_path, rows=8_000)
    # Fewer rows are read more often; the plan is as long as at full size.
    source, mixture = io_resume.opened(tmp_path, repeats=2_000)
    assert mixture.steps == io_resume.STEPS
    found = io_resume.orders(source, mixture, [0, 1, 1_000, 1_000_000])
    assert set(found) == {1, 2, 4, 8}
    assert len(set(found.values())) == 1
    other = io_resume.orders(source, mixture, [0, 1, 1_001, 1_000_000])
    assert set(other.values()).isdisjoint(found.values())
