"""Live progress of a worker: the ledger's totals beside its own rates (protocols.md 4)."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any


class Progress:
    """Thread-safe figures of one worker, replaced as they come.

    ``done`` and ``total`` count the whole stage (the ledger's totals), ``rates`` are this worker's own.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._done = 0
        self._total = 0
        self._unit = ""
        self._counts: dict[str, int] = {}
        self._rates: dict[str, float] = {}
        self._gauges: dict[str, float] = {}

    def update(
        self,
        *,
        done: int | None = None,
        total: int | None = None,
        unit: str | None = None,
        counts: Mapping[str, int] | None = None,
        rates: Mapping[str, float] | None = None,
        gauges: Mapping[str, float] | None = None,
    ) -> None:
        """Replace the figures that are given.

        Args:
            done: Units done in the whole stage.
            total: Units of the whole stage.
            unit: What a unit is: ``shards``, ``steps``, ``documents``.
            counts: Running totals, such as ``pairs`` or ``documents``.
            rates: Per second, such as ``tokens_per_second``.
            gauges: Current values, such as ``loss``.
        """
        with self._lock:
            self._done = self._done if done is None else done
            self._total = self._total if total is None else total
            self._unit = self._unit if unit is None else unit
            self._counts.update(counts or {})
            self._rates.update(rates or {})
            self._gauges.update(gauges or {})

    def snapshot(self) -> dict[str, Any]:
        """The figures as they stand, as JSON-ready data."""
        with self._lock:
            return {
                "done": self._done,
                "total": self._total,
                "unit": self._unit,
                "counts": dict(self._counts),
                "rates": dict(self._rates),
                "gauges": dict(self._gauges),
            }
