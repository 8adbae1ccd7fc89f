from __future__ import annotations

from typing import Any

import pytest

from instructpt.evaluation.verdict import count, give_verdict, show


def metric(gain: float, low: float, high: float, *, informative: bool = True, title: str = "Held-out text") -> dict:
    return {
        "title": title, "unit": "bits/byte", "direction": "lower", "informative": informative,
        "reason": "" if informative else "no model is better than the untrained model by more than the noise",
        "values": {"instruct": {"value": 2.0 - gain}, "vanilla": {"value": 2.0}},
        "gains": {"instruct": {"gain": gain, "interval": [low, high], "beyond_noise": low > 0 or high < 0}},
    }  # fmt: skip


def arm(tokens: int = 2_000_000, *, seeds: int = 1, documents: int | None = 100, repeats: float | None = 1.0) -> dict:
    return {
        "train_tokens": tokens, "unique_documents": documents, "repeats": repeats,
        "runs": [{"seed": i} for i in range(seeds)],
    }  # fmt: skip


def verdict(metrics: dict[str, Any], arms: dict[str, Any] | None = None) -> dict[str, Any]:
    return give_verdict(
        {"metrics": metrics, "baseline": "vanilla", "arms": arms or {"instruct": arm(), "vanilla": arm()}}
    )


@pytest.mark.parametrize(
    ("gain", "low", "high", "said"),
    [
        (0.2, 0.1, 0.3, "better than vanilla on held-out text"),
        (-0.2, -0.3, -0.1, "worse than vanilla on held-out text"),
        (0.1, -0.1, 0.3, "within the noise of vanilla on held-out text"),
    ],
)
def test_the_headline_follows_the_interval(gain: float, low: float, high: float, said: str) -> None:
    got = verdict({"bits-per-byte": metric(gain, low, high)})
    assert said in got["headline"]
    assert ("One training seed" in got["headline"]) == (low > 0 or high < 0)


def test_mixed_results_are_said_as_mixed_and_blind_metrics_apart() -> None:
    got = verdict(
        {
            "answer-bits-per-byte": metric(0.2, 0.1, 0.3, title="Held-out answers"),
            "bits-per-byte": metric(-0.2, -0.3, -0.1),
            "qa-exact-match": metric(0.0, 0.0, 0.0, informative=False, title="Questions answered"),
        }
    )
    assert got["headline"] == (
        "At an equal 2M training tokens, instruct came out better than vanilla on held-out answers and worse than "
        "vanilla on held-out text. One training seed: whether it holds for others is not known. Not informative here: "
        "questions answered."
    )
    assert got["findings"][0].startswith("Held-out text (bits-per-byte): instruct is worse.")
    assert "gain -0.200 (95\u00a0% interval -0.300 to -0.100)" in got["findings"][0]
    assert "not informative" in got["findings"][2]


def test_nothing_informative_concludes_nothing() -> None:
    got = verdict({"bits-per-byte": metric(0.2, 0.1, 0.3, informative=False)})
    assert "nothing can be said" in got["headline"]


def test_one_model_has_nothing_to_compare_with_and_no_evaluation_says_so() -> None:
    alone = metric(0, 0, 0) | {"gains": {}, "values": {"vanilla": {"value": 2.0}}}
    got = verdict({"bits-per-byte": alone}, {"vanilla": arm()})
    assert "nothing to compare" in got["headline"]
    assert got["findings"] == ["Held-out text (bits-per-byte): vanilla 2.000 bits/byte."]
    assert "no evaluation" in verdict({})["headline"]


def test_several_seeds_drop_the_warning_about_one() -> None:
    arms = {"instruct": arm(seeds=3), "vanilla": arm(seeds=3)}
    got = verdict({"bits-per-byte": metric(0.2, 0.1, 0.3)}, arms)
    assert "One training seed" not in got["headline"] + "".join(got["limits"])


def test_small_and_large_runs() -> None:
    small = verdict({"bits-per-byte": metric(0.2, 0.1, 0.3)})
    large = verdict({"bits-per-byte": metric(0.2, 0.1, 0.3)}, {"instruct": arm(10**11), "vanilla": arm(10**11)})
    assert any("small run: 2M tokens" in text for text in small["limits"])
    assert not any("small run" in text for text in large["limits"])


def test_unequal_budgets_repeats_and_documents_are_named() -> None:
    got = verdict(
        {"bits-per-byte": metric(0.2, 0.1, 0.3)},
        {"instruct": arm(2_000_000, repeats=2.5, documents=50), "vanilla": arm(2_100_000, documents=100)},
    )
    text = " ".join(got["limits"])
    assert "UNEQUAL" in got["headline"]
    assert "instruct 2,000,000, vanilla 2,100,000" in text
    assert "instruct 2.5 times" in text
    assert "instruct 50, vanilla 100" in text


def test_a_tenth_of_a_per_cent_is_equal() -> None:
    got = verdict({"bits-per-byte": metric(0.2, 0.1, 0.3)}, {"instruct": arm(1_000_000), "vanilla": arm(1_000_900)})
    assert "an equal 1M training tokens" in got["headline"]


def test_numbers_for_people() -> None:
    assert [count(n) for n in (7, 1500, 2_134_000, 10**11)] == ["7", "1.5k", "2.13M", "100B"]
    assert show("qa-exact-match", 12.345) == "12.3"
    assert show("bits-per-byte", -0.5, sign=True) == "-0.500"
    assert show("bits-per-byte", None) == "–"
