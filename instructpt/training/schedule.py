"""Learning rate over steps: warm-up, then cosine, constant, or warm-up-stable-decay."""

from __future__ import annotations

import math

from instructpt.api.v1alpha1.trainingjob import Schedule


def learning_rate(step: int, steps: int, peak: float, schedule: Schedule) -> float:
    """The rate of one step.

    Warm-up is linear and reaches the peak in its last step. ``cosine`` falls to ``final_fraction`` of the peak in the
    last step (SGDR, arXiv 1608.03983); ``wsd`` stays and falls linearly over the last ``decay_fraction`` of the steps
    (MiniCPM, arXiv 2404.06395); ``constant`` stays.

    Args:
        step: From 0.
        steps: In all.
        peak: Largest rate.
        schedule: Shape.
    """
    warmup = math.ceil(schedule.warmup_fraction * steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule.name == "constant":
        return peak
    if schedule.name == "cosine":
        share = (step - warmup + 1) / max(1, steps - warmup)
        shape = 0.5 * (1.0 + math.cos(math.pi * min(1.0, share)))
    else:
        decay = max(1, math.ceil(schedule.decay_fraction * steps))
        shape = min(1.0, (steps - 1 - step) / decay)
    return peak * (schedule.final_fraction + (1.0 - schedule.final_fraction) * shape)
