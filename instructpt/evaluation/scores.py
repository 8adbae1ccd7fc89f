"""Results of all models -> scores, gains, what is informative, and the gate. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from instructpt.api.v1alpha1.evaluationjob import Gate
from instructpt.evaluation.metrics import CHANCE, MAJORITY, METRICS, UNTRAINED, Metric
from instructpt.evaluation.results import TaskResult, to_sample
from instructpt.evaluation.statistics import (
    LEVEL,
    RESAMPLES,
    Estimate,
    Floats,
    Sample,
    estimate,
    resample,
    rounded,
    rounded_pair,
    wilson,
)

_REFERENCES = {
    UNTRAINED: "the untrained model",
    MAJORITY: "always giving the most frequent answer",
    CHANCE: "drawing one of the choices",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """One model on one task: its value, its resamples, in units of the metric."""

    sample: Sample
    items: int
    value: float
    resamples: Floats
    seeds: dict[str, float]


def score(
    results: Sequence[TaskResult], *, tasks: Sequence[str], baseline: str | None, gate: Gate | None, seed: int
) -> dict[str, Any]:
    """The content of ``scores.json`` that the numbers decide.

    Args:
        results: Every model (``untrained``, ``majority`` and ``chance`` among them) on every task, one for each
            training seed.
        tasks: Names of the tasks.
        baseline: Model that gains are counted from.
        gate: When the answer is yes.
        seed: Of the bootstrap.

    Returns:
        ``metrics``: by task direction, unit, ``values`` by model, ``gains`` over the baseline by model,
        ``informative`` and ``reason``; ``gate``; ``bootstrap``.
    """
    metrics = {task: _score_task(METRICS[task], results, baseline, seed) for task in tasks}
    return {
        "metrics": metrics,
        "gate": judge_gate(gate, metrics),
        "bootstrap": {"resamples": RESAMPLES, "level": LEVEL, "seed": seed, "drawn": "documents"},
    }


def _score_task(metric: Metric, results: Sequence[TaskResult], baseline: str | None, seed: int) -> dict[str, Any]:
    measured = _measure(metric, results, seed)
    arms = [name for name in measured if name not in _REFERENCES]
    informative, reason = judge_informative(metric, measured)
    gains = {
        name: _gain(metric, measured[name], measured[baseline])
        for name in arms
        if baseline in measured and name != baseline
    }
    return {
        "title": metric.title,
        "about": metric.about,
        "unit": metric.unit,
        "direction": metric.direction,
        "informative": informative,
        "reason": reason,
        "values": {name: _value(metric, m) for name, m in measured.items()},
        "gains": gains,
    }


def _measure(metric: Metric, results: Sequence[TaskResult], seed: int) -> dict[str, _Measured]:
    names = dict.fromkeys(r.model for r in results if r.task == metric.name)
    measured: dict[str, _Measured] = {}
    for stream, name in enumerate(names):
        own = [r for r in results if r.task == metric.name and r.model == name]
        sample = to_sample(own)
        if sample is None:
            continue
        by_seed = metric.scale * sample.by_seed()
        measured[name] = _Measured(
            sample=sample,
            items=len(own[0].items),
            value=float(by_seed.mean()),
            resamples=metric.scale * resample(sample, seed=seed, stream=stream),
            seeds={str(r.seed): float(v) for r, v in zip(own, by_seed, strict=True) if r.seed is not None},
        )
    return measured


def _value(metric: Metric, measured: _Measured) -> dict[str, Any]:
    sure = estimate(measured.value, measured.resamples, documents=measured.sample.documents)
    interval = sure.interval
    if metric.direction == "higher" and interval is not None:
        # Nothing right (or wrong) in a sample is not nothing at all: never narrower than the interval of a share.
        low, high = wilson(measured.value / metric.scale * measured.items, measured.items)
        interval = (min(interval[0], metric.scale * low), max(interval[1], metric.scale * high))
    return {
        "value": rounded(measured.value),
        "stderr": rounded(sure.stderr),
        "interval": rounded_pair(interval),
        "n": measured.items,
        "documents": measured.sample.documents,
        "seeds": {name: rounded(value) for name, value in measured.seeds.items()},
    }


def _compare(metric: Metric, one: _Measured, other: _Measured) -> Estimate:
    sign = 1.0 if metric.direction == "higher" else -1.0
    gains = np.asarray(sign * (one.resamples - other.resamples), dtype=np.float64)
    return estimate(metric.gain(one.value, other.value), gains, documents=one.sample.documents)


def _gain(metric: Metric, one: _Measured, baseline: _Measured) -> dict[str, Any]:
    sure = _compare(metric, one, baseline)
    return {
        "gain": rounded(sure.value),
        "stderr": rounded(sure.stderr),
        "interval": rounded_pair(sure.interval),
        "beyond_noise": sure.interval is not None and (sure.interval[0] > 0.0 or sure.interval[1] < 0.0),
    }


def judge_informative(metric: Metric, measured: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether a metric can tell the arms apart at all, and why not.

    It cannot where no arm is better than a model that has learned nothing, nor, for answers, where none is better than
    always giving the most frequent one or drawing one of the choices. "Better" means that the 95 % interval of the
    gain lies above 0.
    """
    arms = [m for name, m in measured.items() if name not in _REFERENCES]
    if not arms:
        return False, "there was nothing to measure: no question could be made from the held-out documents"
    if all(m.sample.documents < 2 for m in arms):
        return False, "measured on a single document, so nothing can be said about noise"
    for name, what in _REFERENCES.items():
        if name not in measured:
            continue
        intervals = [_compare(metric, arm, measured[name]).interval for arm in arms]
        if not any(interval is not None and interval[0] > 0.0 for interval in intervals):
            return False, f"no model is better than {what} by more than the noise"
    return True, ""


def judge_gate(gate: Gate | None, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """``Passed``, ``Failed`` or ``None``, with the reason.

    The model judged is ``instruct`` where there is one, else the first that is not the baseline. It passes when the
    metric is informative, the gain reaches ``minDelta``, and the gain's 95 % interval lies above 0 (above ``minDelta``
    where that is negative, which asks for "not worse").
    """
    if gate is None:
        return {"verdict": "None", "reason": "no gate is declared"}
    table = metrics[gate.metric]
    name = "instruct" if "instruct" in table["gains"] else next(iter(table["gains"]), None)
    judged = {"metric": gate.metric, "min_delta": gate.min_delta, "model": name}
    if name is None:
        reason = "there is no model beside the baseline, or nothing was measured"
        return {"verdict": "Failed", "reason": reason, **judged}
    gain = table["gains"][name]
    if not table["informative"]:
        reason = f"{gate.metric} is not informative here: {table['reason']}"
    elif gain["gain"] < gate.min_delta:
        reason = f"the gain of {name} is {gain['gain']:g}, below minDelta {gate.min_delta:g}"
    elif gain["interval"] is None or gain["interval"][0] <= min(0.0, gate.min_delta):
        reason = f"the gain of {name} is {gain['gain']:g}, within the noise of its 95 % interval {gain['interval']}"
    else:
        reason = f"the gain of {name} is {gain['gain']:g}"
        return {"verdict": "Passed", "reason": reason, **judged, "gain": gain["gain"]}
    return {"verdict": "Failed", "reason": reason, **judged, "gain": gain["gain"]}
