from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from instructpt.api.v1alpha1.evaluationjob import Gate
from instructpt.errors import EvaluationError
from instructpt.evaluation.results import ItemScore, TaskResult, parse_result, result_key, to_sample
from instructpt.evaluation.scores import score


def result(model: str, scores: list[float], *, task: str = "bits-per-byte", seed: int | None = 1) -> TaskResult:
    weight = 100.0 if task != "qa-exact-match" else 1.0
    items = tuple(ItemScore(id=f"i{n}", document=f"d{n}", score=s, weight=weight) for n, s in enumerate(scores))
    return TaskResult(model=model, seed=seed, task=task, items=items)


def bits(level: float, *, noise: int = 0, number: int = 40) -> list[float]:
    return list(100 * level + np.random.default_rng(noise).normal(size=number))


def scored(*results: TaskResult, gate: Gate | None = None, task: str = "bits-per-byte") -> dict[str, Any]:
    return score(results, tasks=[task], baseline="vanilla", gate=gate, seed=7)


def test_values_gains_and_directions() -> None:
    got = scored(result("instruct", bits(2.0)), result("vanilla", bits(2.5, noise=1)), result("untrained", bits(8.0)))
    metric = got["metrics"]["bits-per-byte"]
    assert metric["values"]["instruct"]["value"] == pytest.approx(2.0, abs=0.01)
    assert metric["values"]["instruct"]["n"] == 40
    gain = metric["gains"]["instruct"]
    assert gain["gain"] == pytest.approx(0.5, abs=0.02)  # lower is better, so this is a gain
    assert gain["interval"][0] < gain["gain"] < gain["interval"][1]
    assert gain["beyond_noise"]
    assert metric["informative"]
    assert metric["direction"] == "lower"


def test_a_metric_on_which_nothing_beats_the_untrained_model_is_not_informative() -> None:
    got = scored(
        result("instruct", bits(8.0, noise=1)), result("vanilla", bits(8.0, noise=2)), result("untrained", bits(8.0))
    )
    metric = got["metrics"]["bits-per-byte"]
    assert not metric["informative"]
    assert "untrained" in metric["reason"]


def test_one_arm_that_learned_is_enough() -> None:
    got = scored(result("instruct", bits(2.0)), result("vanilla", bits(8.0)), result("untrained", bits(8.0)))
    assert got["metrics"]["bits-per-byte"]["informative"]


@pytest.mark.parametrize(
    ("right", "reference", "informative", "word"),
    [
        (36, "majority", True, ""),
        (20, "majority", False, "most frequent"),
        (30, "chance", True, ""),
        (21, "chance", False, "drawing"),
    ],
)
def test_answers_must_beat_what_needs_no_reading(right: int, reference: str, informative: bool, word: str) -> None:
    def share(number: int) -> list[float]:
        return [1.0] * number + [0.0] * (40 - number)

    other = share(20)[::-1] if reference == "majority" else [0.5] * 40
    got = scored(
        result("instruct", share(right), task="qa-exact-match"),
        result("vanilla", share(0), task="qa-exact-match"),
        result("untrained", share(0), task="qa-exact-match"),
        result(reference, other, task="qa-exact-match", seed=None),
        task="qa-exact-match",
    )
    metric = got["metrics"]["qa-exact-match"]
    assert metric["informative"] is informative
    assert word in metric["reason"]
    assert metric["values"]["instruct"]["value"] == 100 * right / 40


def test_nothing_right_still_has_an_interval() -> None:
    got = scored(result("instruct", [0.0] * 30, task="qa-exact-match"), task="qa-exact-match")
    low, high = got["metrics"]["qa-exact-match"]["values"]["instruct"]["interval"]
    assert low == 0.0
    assert high == pytest.approx(11.35, abs=0.1)


def test_no_questions_is_said_and_not_a_number() -> None:
    got = scored(result("instruct", [], task="qa-exact-match"), task="qa-exact-match")
    metric = got["metrics"]["qa-exact-match"]
    assert metric["values"] == {}
    assert not metric["informative"]
    assert "no question" in metric["reason"]


@pytest.mark.parametrize(
    ("instruct", "vanilla", "min_delta", "verdict", "word"),
    [
        (2.0, 2.5, 0.1, "Passed", "gain"),
        (2.0, 2.5, 0.9, "Failed", "below minDelta"),
        (2.5, 2.0, 0.0, "Failed", "below minDelta"),
        (2.5, 2.501, 0.0, "Failed", "noise"),
        (8.0, 8.0, 0.0, "Failed", "not informative"),
        (2.005, 2.0, -0.1, "Passed", "gain"),
    ],
)
def test_the_gate(instruct: float, vanilla: float, min_delta: float, verdict: str, word: str) -> None:
    got = scored(
        result("instruct", bits(instruct, noise=3)),
        result("vanilla", bits(vanilla, noise=4)),
        result("untrained", bits(8.0)),
        gate=Gate(metric="bits-per-byte", min_delta=min_delta),
    )
    assert got["gate"]["verdict"] == verdict
    assert word in got["gate"]["reason"]


def test_no_gate_has_no_verdict_and_no_arm_to_judge_fails_it() -> None:
    only = result("vanilla", bits(2.0))
    assert scored(only)["gate"]["verdict"] == "None"
    assert scored(only, gate=Gate(metric="bits-per-byte"))["gate"]["verdict"] == "Failed"


def test_training_seeds_are_averaged_and_listed() -> None:
    got = scored(result("instruct", bits(2.0), seed=1), result("instruct", bits(3.0), seed=2))
    value = got["metrics"]["bits-per-byte"]["values"]["instruct"]
    assert value["value"] == pytest.approx(2.5, abs=0.01)
    assert set(value["seeds"]) == {"1", "2"}


def test_questions_of_one_document_are_drawn_together() -> None:
    items = tuple(ItemScore(id=f"q{n}", document=f"d{n // 5}", score=float(n), weight=1.0) for n in range(20))
    sample = to_sample([TaskResult(model="m", seed=1, task="t", items=items)])
    assert sample is not None
    assert sample.scores.tolist() == [[10.0, 35.0, 60.0, 85.0]]
    assert sample.weights.tolist() == [[5.0] * 4]


def test_results_on_other_items_are_refused() -> None:
    with pytest.raises(EvaluationError, match="not of the same items"):
        to_sample([result("m", [1.0, 2.0]), result("m", [1.0], seed=2)])


def test_scores_are_a_function_of_the_results() -> None:
    def once() -> dict[str, Any]:
        return scored(result("instruct", bits(2.0)), result("vanilla", bits(2.5)))

    assert once() == once()


def test_a_result_survives_its_bytes() -> None:
    one = TaskResult(
        model="ä", seed=None, task="qa-exact-match", counts={"prompts": 1},
        items=(ItemScore(id="d?0", document="d", score=1.0, weight=1.0, prediction="yes"),),
    )  # fmt: skip
    assert parse_result(one.to_bytes()) == one


def test_keys_of_odd_names_stay_apart() -> None:
    assert result_key("k", "instruct", 1, "bits-per-byte") == "work/k/results/instruct-1-bits-per-byte.json"
    odd = {result_key("k", name, None, "t") for name in ("a/b", "a_b", "a b", "../x")}
    assert len(odd) == 4
    assert all(".." not in key.split("/") and key.count("/") == 3 for key in odd)
