"""Live progress of a worker: the ledger's totals beside its own rates (protocols.md 4)."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

WINDOW_SECONDS = 300.0
"""Over which the speed of the stage is measured."""
_MARKS = 64
MAX_NOTE = 400
"""Characters of a note: it goes into conditions and termination messages, which are short."""


class Progress:
    """Thread-safe figures of one worker, replaced as they come.

    ``done`` and ``total`` count the whole stage (the ledger's totals), ``rates`` are this worker's own.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._marks: deque[tuple[float, int]] = deque(maxlen=_MARKS)
        self._lock = threading.Lock()
        self._done = 0
        self._total = 0
        self._unit = ""
        self._counts: dict[str, int] = {}
        self._rates: dict[str, float] = {}
        self._gauges: dict[str, float] = {}
        self._notes: dict[str, str] = {}

    def update(
        self,
        *,
        done: int | None = None,
        total: int | None = None,
        unit: str | None = None,
        counts: Mapping[str, int] | None = None,
        rates: Mapping[str, float] | None = None,
        gauges: Mapping[str, float] | None = None,
        notes: Mapping[str, str | None] | None = None,
    ) -> None:
        """Replace the figures that are given.

        Args:
            done: Units done in the whole stage.
            total: Units of the whole stage.
            unit: What a unit is: ``shards``, ``steps``, ``documents``.
            counts: Running totals, such as ``pairs`` or ``documents``.
            rates: Per second, such as ``tokens_per_second``.
            gauges: Current values, such as ``loss``.
            notes: What somebody should know, by subject; ``None`` takes one away. Cut after 400 characters.
        """
        with self._lock:
            if unit is not None and unit != self._unit:
                self._unit = unit
                self._marks.clear()
            self._done = self._done if done is None else done
            self._total = self._total if total is None else total
            if done is not None:
                self._mark()
            self._counts.update(counts or {})
            self._rates.update(rates or {})
            self._gauges.update(gauges or {})
            for name, text in (notes or {}).items():
                if text:
                    self._notes[name] = text[:MAX_NOTE]
                else:
                    self._notes.pop(name, None)

    def _mark(self) -> None:
        """Remember when the stage was how far; thinned out, so that a few marks span the whole window."""
        now = self._clock()
        while len(self._marks) > 1 and now - self._marks[1][0] > WINDOW_SECONDS:
            self._marks.popleft()
        if len(self._marks) < 2 or now - self._marks[-1][0] >= WINDOW_SECONDS / _MARKS:
            self._marks.append((now, self._done))

    def _per_second(self) -> float:
        """Units of the whole stage done a second, over the window; 0 while that cannot be known."""
        if not self._marks:
            return 0.0
        since, done = self._marks[0]
        seconds = self._clock() - since
        return max(0.0, (self._done - done) / seconds) if seconds > 0 else 0.0

    def snapshot(self) -> dict[str, Any]:
        """The figures as they stand, as JSON-ready data."""
        with self._lock:
            return {
                "done": self._done,
                "total": self._total,
                "unit": self._unit,
                "per_second": self._per_second(),
                "counts": dict(self._counts),
                "rates": dict(self._rates),
                "gauges": dict(self._gauges),
                "notes": dict(self._notes),
            }
