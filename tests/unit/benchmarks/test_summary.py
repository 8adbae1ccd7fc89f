from __future__ import annotations

import json

import pytest
import summary


def run(arm: str, repetition: int, seconds: float, **more: object) -> dict[str, object]:
    return {"arm": arm, "repetition": repetition, "seconds": seconds, **more}


def test_quartiles_lie_between_the_values():
    assert summary.quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 3.0, 4.0)
    assert summary.quartiles([1.0, 2.0]) == (1.25, 1.5, 1.75)
    assert summary.quartiles([7.0]) == (7.0, 7.0, 7.0)
    with pytest.raises(ValueError, match="no runs"):
        summary.quartiles([])


def test_an_arm_is_compared_with_the_run_beside_it():
    # The host was twice as slow in the second repetition: the ratio does not move.
    runs = [run("ours", 0, 1.0), run("peer", 0, 2.0), run("ours", 1, 2.0), run("peer", 1, 4.0), run("ours", 2, 9.0)]
    of = {arm: summary.figures(runs, lambda r: r["seconds"], arm=arm) for arm in ("ours", "peer")}
    assert of["ours"] == {0: 1.0, 1: 2.0, 2: 9.0}
    assert summary.paired(of["peer"], of["ours"]) == [2.0, 2.0]


def test_figures_are_of_the_runs_that_match_and_have_them():
    runs = [run("a", 0, 1.0, far=True), run("a", 1, 1.0, far=False), run("a", 2, 3.0, far=False)]
    assert summary.figures(runs, lambda r: r["seconds"] if r["seconds"] > 2 else None, arm="a", far=False) == {2: 3.0}


def test_a_summary_has_median_quartiles_and_the_number_of_runs_of_what_was_measured():
    found = summary.summarize({"x": [1.0, 3.0, 2.0], "never": []})
    assert found.medians == {"x": 2.0}
    assert found.spread == {"x": {"q1": 1.5, "q3": 2.5, "iqr": 1.0, "runs": 3}}


def test_a_result_file_has_the_six_keys_and_four_digits(tmp_path):
    path = tmp_path / "results" / "io.json"
    summary.write_result(
        path,
        runs=[run("ours", 0, 1.23456)],
        summary=summary.summarize({"x": [0.123456]}),
        environment={"cpus": 2},
        command="python benchmarks/bench_io.py",
        commit="abc",
    )
    result = json.loads(path.read_text())
    assert set(result) == {"ratios", "runs", "spread", "environment", "command", "commit"}
    assert result["ratios"] == {"x": 0.1235}
    assert result["runs"] == [{"arm": "ours", "repetition": 0, "seconds": 1.235}]
