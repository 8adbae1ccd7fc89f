"""What is measured: one table of metrics with their directions and units."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Direction = Literal["lower", "higher"]

UNTRAINED = "untrained"
MAJORITY = "majority"
CHANCE = "chance"
"""Rows that every table has beside the models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric; every task gives the metric of its own name.

    Attributes:
        name: Also the task's name.
        title: For people.
        unit: What a value counts.
        direction: Which way is better.
        scale: Factor from the mean of the items' scores to the value.
        decimals: Digits shown.
        answers: Whether it is measured on questions (and has a majority answer), not on whole documents.
        about: What it tells, in one sentence.
    """

    name: str
    title: str
    unit: str
    direction: Direction
    scale: float
    decimals: int
    answers: bool
    about: str

    def gain(self, value: float, baseline: float) -> float:
        """How much better ``value`` is than ``baseline``, in units of the metric; positive is better."""
        return value - baseline if self.direction == "higher" else baseline - value


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            name="bits-per-byte",
            title="Held-out text",
            unit="bits/byte",
            direction="lower",
            scale=1.0,
            decimals=3,
            answers=False,
            about="how well the model predicts documents that no model was trained on",
        ),
        Metric(
            name="answer-bits-per-byte",
            title="Held-out answers",
            unit="bits/byte",
            direction="lower",
            scale=1.0,
            decimals=3,
            answers=True,
            about="how well it predicts the right answer once it has read the document and the question",
        ),
        Metric(
            name="qa-exact-match",
            title="Questions answered",
            unit="%",
            direction="higher",
            scale=100.0,
            decimals=1,
            answers=True,
            about="how many questions on a given held-out document it answers with exactly the right words",
        ),
    )
}
