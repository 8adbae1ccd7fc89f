"""Figures that are read at scrape time -> Prometheus's text format, for processes that keep their own counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric


@dataclass(frozen=True, slots=True)
class Family:
    """One metric with its samples: labels and value. Samples of one family have the same labels."""

    name: str
    type: Literal["counter", "gauge"]
    help: str
    samples: Sequence[tuple[Mapping[str, str], float]]


def render(families: Iterable[Family]) -> bytes:
    """The body of ``/metrics``."""
    registry = CollectorRegistry()
    registry.register(_Once([_metric(f) for f in families]))
    return generate_latest(registry)


class _Once:
    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _metric(family: Family) -> Metric:
    labels = list(family.samples[0][0]) if family.samples else []
    make = CounterMetricFamily if family.type == "counter" else GaugeMetricFamily
    metric: Metric = make(family.name.removesuffix("_total"), family.help, labels=labels)
    for values, value in family.samples:
        metric.add_metric([values[name] for name in labels], value)  # type: ignore[attr-defined]
    return metric
