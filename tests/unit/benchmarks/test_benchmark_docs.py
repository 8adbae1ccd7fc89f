from __future__ import annotations

import json

import benchmark_docs
import pytest

RESULT = {
    "ratios": {"other": 3.0, "ours_over_boto3_small": 2.6, "ours_over_limit": 0.85},
    "spread": {
        name: {"q1": 0.8, "q3": 3.1, "iqr": 2.3, "runs": 5}
        for name in ("other", "ours_over_boto3_small", "ours_over_limit")
    },
    "environment": {
        "cpu": "Some CPU",
        "cpus": 2,
        "python": "3.11.7",
        "versions": {"boto3": "1.44.5"},
        "peers": {"obstore": "0.12.0"},
        "load_average_before": [0.1, 0.2, 0.3],
        "load_average_after": [1.5, 0.2, 0.3],
    },
    "command": "python benchmarks/bench_io.py",
    "commit": "0123456789abcdef",
}


HEADLINES = {
    "io": {"ours_over_limit", "ours_over_boto3_small"},
    "prep": {"ours_over_hf_trl", "packer_over_trl", "fill"},
    "synthesis": {
        "ours_over_raw",
        "ours_over_reference_m2",
        "ours_over_reference_m3",
        "ours_over_reference_m5",
        "prefix_hits_over_attainable",
        "goodput_under_kills",
    },
    "train": {"ours_over_bare", "checkpoint_stall_over_save", "goodput_under_kills"},
}


def test_a_missed_goal_stays_in_the_table_with_its_number():
    lines = benchmark_docs.table("io", RESULT).splitlines()
    assert lines[2] == "| `ours_over_limit` | 0.85 | 0.8 to 3.1 | 5 | ≥ 0.9 | **missed** |"
    assert lines[3] == "| `ours_over_boto3_small` | 2.6 | 0.8 to 3.1 | 5 | ≥ 2.5 (moonshot ≥ 5) | met |"
    assert lines[4] == "| `other` | 3 | 0.8 to 3.1 | 5 |  |  |"
    assert lines[5] == "| `resume_seconds_late` | not measured | | 0 | ≤ 1 | **open** |"


def test_the_surroundings_name_host_load_command_commit_and_peers():
    said = benchmark_docs.surroundings("io", RESULT)
    for word in ("Some CPU", "2 cores", "0.1 before and 1.5 after", "bench_io.py", "0123456789ab", "obstore 0.12.0"):
        assert word in said


def test_a_load_that_was_not_noted_is_not_made_up():
    unknown = {**RESULT, "environment": {**RESULT["environment"], "load_average_after": None}}
    assert "0.1 before and not noted after" in benchmark_docs.surroundings("io", unknown)


def test_a_goal_at_most_is_missed_above_it():
    goal = benchmark_docs.GOALS["io"]["resume_seconds_late"]
    assert goal.met(1.0)
    assert not goal.met(1.1)
    assert str(goal) == "≤ 1"


def test_tables_are_put_between_their_marks_and_the_prose_stays():
    page = "# Title\n<!-- BEGIN io -->\nold\n<!-- END io -->\nprose"
    once = benchmark_docs.filled(page, {"io": RESULT})
    assert once.startswith("# Title\n<!-- BEGIN io -->\n| ratio |")
    assert once.endswith("<!-- END io -->\nprose")
    assert "old" not in once
    assert benchmark_docs.filled(once, {"io": RESULT}) == once
    with pytest.raises(ValueError, match="BEGIN io"):
        benchmark_docs.filled("no place", {"io": RESULT})


def test_the_page_shows_the_committed_results_and_their_goals():
    page = benchmark_docs.PAGE.read_text()
    results = benchmark_docs.load_results()
    assert benchmark_docs.filled(page, results) == page
    for name, result in results.items():
        assert set(result) == {"ratios", "runs", "spread", "environment", "command", "commit"}
        assert HEADLINES[name] <= benchmark_docs.GOALS[name].keys()  # each has a row, measured or not
        assert result["ratios"].keys() == result["spread"].keys()
        assert json.dumps(result)
