from __future__ import annotations

from typing import Any

import pytest

from instructpt.api.common import DisplayStatus
from instructpt.api.v1alpha1 import KINDS
from instructpt.plan.display import display, duration, of_total, quantity


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (999, "999"), (1000, "1.0k"), (4_100_000, "4.1M"), (15_234_567, "15.2M"), (99_949, "99.9k"),
        (99_950, "100k"), (152_300, "152k"), (999_499, "999k"), (999_500, "1.0M"), (3_100_000_000, "3.1B"),
        (2 * 10**12, "2.0T"), (5 * 10**15, "5000T"),
    ],
)  # fmt: skip
def test_a_quantity_has_at_most_four_characters_and_a_suffix(value: int, text: str) -> None:
    assert quantity(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"), (119, "119s"), (120, "2m"), (150, "2m30s"), (600, "10m"), (10_799, "179m"), (10_800, "3h"),
        (18_600, "5h10m"), (28_800, "8h"), (172_799, "47h"), (172_800, "2d"), (180_000, "2d2h"), (700_000, "8d"),
    ],
)  # fmt: skip
def test_a_duration_reads_as_an_age_of_kubectl(seconds: int, text: str) -> None:
    assert duration(seconds) == text


def test_a_percentage_never_rounds_up_to_what_is_not_reached() -> None:
    assert of_total(147, 512, percent=True) == "147/512 (28%)"
    assert of_total(999_999, 1_000_000, percent=True).endswith("(99%)")
    assert of_total(0, 0, percent=True) == "0/0"


CASES: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, str]]] = [
    (
        "Corpus",
        {"counts": {"documents": 15_200_000, "tokens": 3_100_000_000}, "shards": {"total": 1024}},
        {},
        {"documents": "15.2M", "tokens": "3.1B", "shards": "1024"},
    ),
    ("Corpus", {"counts": {"documents": 12, "shards": 3}}, {}, {"documents": "12", "shards": "3"}),
    (
        "SynthesisJob",
        {
            "shards": {"succeeded": 147, "total": 512},
            "counts": {"pairs": 4_100_000},
            "progress": {"done": 1, "total": 2, "unit": "stages", "etaSeconds": 18_600, "tokensPerSecond": 12_345.6},
        },
        {"synthesizer": {"model": "a/b"}},
        {"progress": "147/512 (28%)", "pairs": "4.1M", "eta": "5h10m", "throughput": "12.3k", "model": "a/b"},
    ),
    (
        "SynthesisJob",
        {"progress": {"done": 3, "total": 4, "unit": "shards"}},
        {"synthesizer": {"ref": {"kind": "TrainingJob", "name": "t"}}},
        {"progress": "3/4 (75%)", "model": "TrainingJob/t"},
    ),
    # Finished: the manifest's count, and no time left.
    (
        "SynthesisJob",
        {"counts": {"shards": 4, "pairs": 0}, "completionTime": "2026-01-01T00:00:00Z", "progress": {"etaSeconds": 5}},
        {},
        {"progress": "4/4 (100%)", "pairs": "0"},
    ),
    (
        "TrainingJob",
        {"step": 12000, "steps": 50000, "loss": 2.31412, "progress": {"mfu": 0.4123}},
        {},
        {"step": "12000/50000", "loss": "2.314", "mfu": "41.2%"},
    ),
    (
        "TrainingJob",
        {"counts": {"steps": 50}, "scores": {"final_loss": 1.0, "first_loss": 9.0}},
        {},
        {"step": "50/50", "loss": "1.000"},
    ),
    (
        "TrainingJob",
        {"progress": {"done": 3, "total": 9, "unit": "steps"}},
        {},
        {"step": "3/9"},
    ),
    (
        "EvaluationJob",
        {
            "progress": {"done": 3, "total": 3, "unit": "tasks"},
            "scores": {"vanilla/qa-exact-match": 58.4, "instruct/qa-exact-match": 61.3, "gate": 1.0},
        },
        {
            "tasks": ["qa-exact-match"],
            "baseline": "vanilla",
            "models": [{"name": "vanilla"}, {"name": "other"}, {"name": "instruct"}],
        },
        {"progress": "3/3", "score": "61.3", "delta": "+2.9", "tasks": "qa-exact-match"},
    ),
    # Fewer bits are better, so the gain is above 0, as in the gate's minDelta.
    (
        "EvaluationJob",
        {"scores": {"a/bits-per-byte": 1.2, "b/bits-per-byte": 1.0}},
        {"tasks": ["qa-exact-match", "bits-per-byte"], "gate": {"metric": "bits-per-byte"}, "baseline": "a",
         "models": [{"name": "a"}, {"name": "b"}]},
        {"score": "1.000", "delta": "+0.200", "tasks": "qa-exact-match,bits-per-byte"},
    ),
    # Without a baseline there is a score and no gain.
    (
        "EvaluationJob",
        {"scores": {"a/bits-per-byte": 1.2}},
        {"tasks": ["bits-per-byte"], "models": [{"name": "a"}]},
        {"score": "1.200", "tasks": "bits-per-byte"},
    ),
    (
        "InstructionPretraining",
        {"synthesis": "512/512 (100%)", "training": "12000/50000", "progress": {"etaSeconds": 18_600}},
        {"training": {"init": {"preset": "tiny"}}, "arms": [{"name": "instruct"}, {"name": "vanilla"}]},
        {
            "synthesis": "512/512 (100%)", "training": "12000/50000", "eta": "5h10m", "model": "tiny",
            "arms": "instruct,vanilla",
        },
    ),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "status", "spec", "columns"), CASES)
def test_columns_are_made_from_the_status(
    kind: str, status: dict[str, Any], spec: dict[str, Any], columns: dict[str, str]
) -> None:
    assert display(kind, status, spec) == columns
    assert DisplayStatus.model_validate(columns).to_wire() == columns


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_status_has_no_columns(kind: str) -> None:
    assert display(kind, {}) == {}


def test_long_lists_are_cut_to_what_the_schema_takes() -> None:
    arms = [{"name": f"arm-{n:030}"} for n in range(16)]
    assert len(display("InstructionPretraining", {}, {"arms": arms})["arms"]) == 256
