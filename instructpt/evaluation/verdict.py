"""What the numbers mean and do not mean, in sentences computed from them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from instructpt.evaluation.metrics import METRICS

# Below this a run shows that the path works, hardly what the method brings: the paper's smallest run has 100 B tokens.
TINY_TOKENS = 1_000_000_000
EQUAL_TOKENS = 0.001


def give_verdict(report: Mapping[str, Any]) -> dict[str, Any]:
    """``headline``, ``findings`` (one a metric) and ``limits`` of a report without its verdict."""
    findings = [_finding(name, metric, report) for name, metric in in_order(report["metrics"])]
    return {"headline": _headline(report), "findings": findings, "limits": _limits(report)}


def judged_arm(metrics: Mapping[str, Any]) -> str | None:
    """The arm that the headline is about: ``instruct``, else the first that is not the baseline."""
    names = [name for metric in metrics.values() for name in metric["gains"]]
    return "instruct" if "instruct" in names else next(iter(names), None)


def in_order(metrics: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Metrics in the order of their table, whatever the order they were read in."""
    known = list(METRICS)
    return sorted(metrics.items(), key=lambda item: known.index(item[0]) if item[0] in known else len(known))


def count(number: int | float) -> str:
    """``2_134_000`` -> ``2.13M``."""
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{suffix}"
    return f"{number:g}"


def show(name: str, value: float | None, *, sign: bool = False) -> str:
    """A value of a metric with its digits, without its unit; a dash for none."""
    if value is None:
        return "–"
    metric = METRICS.get(name)
    decimals = metric.decimals if metric else 3
    return f"{value:+.{decimals}f}" if sign else f"{value:.{decimals}f}"


def _headline(report: Mapping[str, Any]) -> str:
    metrics, baseline = report["metrics"], report["baseline"]
    if not metrics:
        return "Nothing was measured: this run has no evaluation."
    arm = judged_arm(metrics)
    if arm is None:
        return "Only one model was measured, so there is nothing to compare it with."
    better: list[str] = []
    worse: list[str] = []
    even: list[str] = []
    blind: list[str] = []
    for _, metric in in_order(metrics):
        name = metric["title"].lower()
        gain = metric["gains"].get(arm)
        if not metric["informative"] or gain is None:
            blind.append(name)
        elif not gain["beyond_noise"]:
            even.append(name)
        else:
            (better if gain["gain"] > 0 else worse).append(name)
    if not (better or worse or even):
        return f"No metric is informative at this size, so nothing can be said about {arm} against {baseline}."
    said = [
        f"{word} {baseline} on {_and(names)}"
        for word, names in (("better than", better), ("worse than", worse), ("within the noise of", even))
        if names
    ]
    tail = (
        " One training seed: whether it holds for others is not known." if better + worse and _one_seed(report) else ""
    )
    tail += f" Not informative here: {_and(blind)}." if blind else ""
    return f"At {_budget(report)}, {arm} came out {_and(said)}.{tail}"


def _one_seed(report: Mapping[str, Any]) -> bool:
    return max((len(arm.get("runs", ())) for arm in report["arms"].values()), default=0) < 2


def _budget(report: Mapping[str, Any]) -> str:
    tokens = [arm["train_tokens"] for arm in report["arms"].values() if arm.get("train_tokens")]
    if not tokens:
        return "the given budget"
    equal = max(tokens) - min(tokens) <= EQUAL_TOKENS * max(tokens)
    return f"an equal {count(max(tokens))} training tokens" if equal else "UNEQUAL numbers of training tokens"


def _finding(name: str, metric: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    what = f"{metric['title']} ({name}): "
    if not metric["informative"]:
        return what + f"not informative, because {metric['reason']}."
    arm, baseline = judged_arm(report["metrics"]), report["baseline"]
    gain = metric["gains"].get(arm)
    values = metric["values"]
    if arm is None or gain is None:
        own = ", ".join(f"{n} {show(name, v['value'])}" for n, v in values.items())
        return what + f"{own} {metric['unit']}."
    low, high = gain["interval"] or (None, None)
    span = f"95\u00a0% interval {show(name, low, sign=True)} to {show(name, high, sign=True)}"
    if not gain["beyond_noise"]:
        judged = "no difference beyond noise"
    else:
        judged = f"{arm} is better" if gain["gain"] > 0 else f"{arm} is worse"
    return what + (
        f"{judged}. {arm} {show(name, values[arm]['value'])}, {baseline} {show(name, values[baseline]['value'])} "
        f"{metric['unit']}; gain {show(name, gain['gain'], sign=True)} ({span})."
    )


def _limits(report: Mapping[str, Any]) -> list[str]:
    arms: Mapping[str, Any] = report["arms"]
    limits: list[str] = []
    tokens = max((arm.get("train_tokens") or 0 for arm in arms.values()), default=0)
    if 0 < tokens < TINY_TOKENS:
        limits.append(
            f"This is a small run: {count(tokens)} tokens, where the paper (arXiv 2406.14491) pre-trains on 100B. "
            "It shows that the path works and how the arms differ here, not what the method brings at size."
        )
    if arms and _one_seed(report):
        limits.append(
            "One training seed an arm: the intervals cover which documents were drawn, not the luck of first weights "
            "and order. Set seeds: [1, 2, 3] to see that too."
        )
    limits += _limits_of_data(arms)
    if any(METRICS[name].answers for name in report["metrics"] if name in METRICS):
        limits.append(
            "The questions are made by rules from documents that no arm was trained on. Pairs of like form may stand "
            "in the instruct arm's training text and not in the vanilla arm's, so a gain here says that the form was "
            "learned and carries over to new documents; it says nothing about knowledge or other kinds of questions."
        )
    if "instruct" in arms:
        limits.append(
            "Equal means tokens that were trained on. What it took to make the pairs (tuning and running the "
            "synthesizer) comes on top and is not in the budget."
        )
    return limits


REPEATED = 1.05
"""Passes over the data from which repeating is worth a sentence."""


def _limits_of_data(arms: Mapping[str, Any]) -> list[str]:
    said: list[str] = []
    tokens = {name: arm["train_tokens"] for name, arm in arms.items() if arm.get("train_tokens")}
    if tokens and max(tokens.values()) - min(tokens.values()) > EQUAL_TOKENS * max(tokens.values()):
        numbers = ", ".join(f"{name} {number:,}" for name, number in tokens.items())
        said.append(f"The arms were NOT trained on equal numbers of tokens ({numbers}); do not compare them.")
    passes = {name: arm.get("repeats") or 0 for name, arm in arms.items()}
    repeated = [f"{name} {number:.2g} times" for name, number in passes.items() if number >= REPEATED]
    if repeated:
        said.append(f"Data were repeated: {_and(repeated)}. An arm that repeats more learns less from each pass.")
    unique = {name: arm["unique_documents"] for name, arm in arms.items() if arm.get("unique_documents")}
    if len(unique) > 1 and len(set(unique.values())) > 1:
        numbers = ", ".join(f"{name} {number:,}" for name, number in unique.items())
        said.append(
            f"In the same number of tokens the arms saw different numbers of documents ({numbers}), because pairs take "
            "tokens too. On plain held-out text that favours the arm that read more plain text."
        )
    return said


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
