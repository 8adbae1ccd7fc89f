"""What a worker's ``/progress`` says, made by the class that workers use: no test invents a figure that none sends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from instructpt.telemetry.progress import Progress


def told(
    done: int,
    total: int,
    unit: str,
    *,
    per_second: float = 0.0,
    counts: Mapping[str, int] | None = None,
    rates: Mapping[str, float] | None = None,
    gauges: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Figures of a worker that has seen its stage go on at that speed, from nothing to ``done``."""
    now = [0.0]
    progress = Progress(clock=lambda: now[0])
    progress.update(done=0, total=total, unit=unit)
    now[0] = done / per_second if per_second else 0.0
    progress.update(done=done, counts=counts, rates=rates, gauges=gauges)
    return progress.snapshot()
