"""Runs of a benchmark -> ratios and their spread. Pure: what is published is decided here."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from environment import ROOT

Run = Mapping[str, Any]
"""One run of one arm: ``arm``, ``repetition``, ``seconds`` and what it counted."""

RESULTS = ROOT / "benchmarks" / "results"


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median and third quartile, by linear interpolation between the values.

    Raises:
        ValueError: There are no values.
    """
    if not values:
        raise ValueError("no values: an arm has no runs")
    if len(values) == 1:
        return values[0], values[0], values[0]
    first, median, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, median, third


def figures(runs: Sequence[Run], of: Callable[[Run], float | None], **where: Any) -> dict[int, float]:
    """A figure of every run that has it and matches ``where``, by repetition."""
    chosen = [run for run in runs if all(run.get(name) == value for name, value in where.items())]
    return {int(run["repetition"]): value for run in chosen if (value := of(run)) is not None}


def paired(over: Mapping[int, float], under: Mapping[int, float]) -> list[float]:
    """``over / under`` of each repetition that has both: arms are compared with the run beside them."""
    return [over[number] / under[number] for number in sorted(over.keys() & under.keys())]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Medians and spread of named figures."""

    medians: dict[str, float]
    spread: dict[str, dict[str, Any]]


def summarize(named: Mapping[str, Sequence[float]]) -> Summary:
    """Of each name that has values: the median, and the quartiles with the number of runs."""
    medians, spread = {}, {}
    for name, values in named.items():
        if not values:
            continue
        first, median, third = quartiles(values)
        medians[name] = rounded(median)
        spread[name] = {"q1": rounded(first), "q3": rounded(third), "iqr": rounded(third - first), "runs": len(values)}
    return Summary(medians=medians, spread=spread)


def rounded(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")


def write_result(
    path: Path, *, runs: Sequence[Run], summary: Summary, environment: Mapping[str, Any], command: str, commit: str
) -> None:
    """One result file: ``ratios``, ``runs``, ``spread``, ``environment``, ``command`` and ``commit``."""
    result = {
        "ratios": summary.medians,
        "runs": [{name: _short(value) for name, value in run.items()} for run in runs],
        "spread": summary.spread,
        "environment": environment,
        "command": command,
        "commit": commit,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2, sort_keys=True) + "\n")


def _short(value: Any) -> Any:
    return rounded(value) if isinstance(value, float) else value
