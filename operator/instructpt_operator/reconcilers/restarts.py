"""What a restart of a whole training cost: its cause, the step that was reached, the one it went on from."""

from __future__ import annotations

from typing import Any

from instructpt.api.v1alpha1.trainingjob import RestartStatus, TrainingJobStatus
from instructpt.plan.status import StageObservation
from instructpt_operator.reconcilers.visit import Visit, rfc3339

RESUMED = "resumed_step"
"""Gauge of a training that went on from a checkpoint."""
_KEY = "lastRestart"


def note_restart(visit: Visit, attempt: int, cause: str, told: int | None) -> None:
    """Attempt ``attempt`` will take the place of one that ended.

    Args:
        visit: To the training.
        attempt: That is to be started.
        cause: Why the one before ended.
        told: The step that it told of; where it never came to tell, the training stands where it stood before.
    """
    known = getattr(visit.resource.status, "step", None) or 0
    restart = RestartStatus(
        attempt=max(2, attempt), cause=cause[:1024], time=rfc3339(visit.now),
        reached=known if told is None else told,
    )  # fmt: skip
    visit.extra[_KEY] = restart.to_wire()


def note_start(visit: Visit, attempt: int) -> None:
    """An attempt is started; where no failure was noted before, the last one was suspended, or somebody deleted it."""
    status = visit.resource.status
    known = status.last_restart if isinstance(status, TrainingJobStatus) else None
    if _KEY not in visit.extra and (known is None or known.attempt < attempt):
        note_restart(visit, attempt, "it was suspended, or what ran was deleted", None)


def restarts(visit: Visit, seen: StageObservation | None) -> dict[str, Any]:
    """``lastRestart`` and ``lostSteps``: the loss is counted once, when the new attempt first tells where it stands."""
    status = visit.resource.status
    before = status if isinstance(status, TrainingJobStatus) else None
    lost = before.lost_steps if before is not None else None
    noted = visit.extra.get(_KEY)
    restart = RestartStatus.model_validate(noted) if noted else before.last_restart if before is not None else None
    if restart is None:
        return {}
    figures = seen.figures if seen is not None and seen.attempts >= restart.attempt else None
    if restart.resumed is None and figures and figures.get("total"):
        resumed = int(figures.get("gauges", {}).get(RESUMED, 0))
        cost = max(0, restart.reached - resumed)
        restart = restart.model_copy(update={"resumed": resumed, "lost_steps": cost})
        lost = (lost or 0) + cost
    return {_KEY: restart.to_wire(), "lostSteps": lost}
