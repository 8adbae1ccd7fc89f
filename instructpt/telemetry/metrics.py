"""Every Prometheus name of the workers, declared in one place.

A worker's figures are read from its :class:`~instructpt.telemetry.progress.Progress` at scrape time, so that
``/metrics``, ``/progress`` and the status agree by construction.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from instructpt.telemetry.progress import Progress

AREA = {
    "inspect": "corpus",
    "synthesize": "synthesis",
    "prepare": "preparation",
    "train": "training",
    "evaluate": "evaluation",
    "finalize": "finalize",
}


class ProgressCollector:
    """Turns a worker's progress into metric families.

    Args:
        progress: The figures.
        verb: The worker's verb; decides the area in the names.
    """

    def __init__(self, progress: Progress, verb: str) -> None:
        self._progress = progress
        self._area = AREA[verb]

    def collect(self) -> Iterable[Metric]:
        """Families of one scrape."""
        figures = self._progress.snapshot()
        prefix = f"instructpt_{self._area}"
        for name in ("done", "total"):
            family = GaugeMetricFamily(
                f"{prefix}_units_{name}", f"Units {name} in the whole stage, by unit.", labels=["unit"]
            )
            family.add_metric([figures["unit"]], figures[name])
            yield family
        for name, value in sorted(figures["counts"].items()):
            yield CounterMetricFamily(f"{prefix}_{_clean(name)}", f"{name} counted by this worker.", value=value)
        for name, value in sorted({**figures["rates"], **figures["gauges"]}.items()):
            yield GaugeMetricFamily(f"{prefix}_{_clean(name)}", f"{name} of this worker.", value=value)


def registry_for(progress: Progress, verb: str) -> CollectorRegistry:
    """A registry that holds one worker's figures."""
    registry = CollectorRegistry()
    registry.register(ProgressCollector(progress, verb))
    return registry


def _clean(name: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_]", "_", name)
