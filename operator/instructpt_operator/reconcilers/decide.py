"""One entry for all kinds: (object, observed, now, config) -> Outcome."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import ValidationError

from instructpt.api.base import Condition
from instructpt.api.reasons import Reason
from instructpt.api.v1alpha1 import KINDS, InstructionPretraining
from instructpt.errors import ConfigError, PlanError
from instructpt.plan.conditions import merge_conditions
from instructpt.plan.naming import ANNOTATION_RECONCILE, MANAGED_BY_VALUE
from instructpt_operator.actions import Action, Delete, Event, Object, Outcome, Patch, Ref
from instructpt_operator.observed import Observed
from instructpt_operator.reconcilers.config import Config
from instructpt_operator.reconcilers.job import reconcile_job
from instructpt_operator.reconcilers.pipeline import reconcile_pipeline
from instructpt_operator.reconcilers.resources import parse
from instructpt_operator.reconcilers.visit import is_leaving, rfc3339, seconds_since


def decide(raw: Object, observed: Observed, now: datetime, config: Config) -> Outcome:
    """What to do for an object, and what its status is.

    Args:
        raw: The object as JSON.
        observed: Its children, their pods, the objects it refers to.
        now: The time, with a zone.
        config: Settings of the operator.
    """
    if is_left_alone(raw):
        return Outcome()
    try:
        resource = parse(raw)
        if isinstance(resource, InstructionPretraining):
            return reconcile_pipeline(resource, observed, now, config)
        return reconcile_job(resource, observed, now, config)
    except ValidationError as error:  # its own, or of a child or of an object that is referred to
        return _unreadable_end(raw, now) if _has_ended(raw) else _refused(raw, observed, error, now)
    except (ConfigError, PlanError) as error:
        return _blocked(raw, observed, str(error), now)


def _has_ended(raw: Object) -> bool:
    return any(
        c.get("type") in ("Complete", "Failed") and c.get("status") == "True"
        for c in (raw.get("status") or {}).get("conditions") or ()
    )


def _unreadable_end(raw: Object, now: datetime) -> Outcome:
    """An end stays, whatever this version makes of the object; only its time to live still runs."""
    ttl, ended = raw["spec"].get("ttlSecondsAfterFinished"), raw["status"].get("completionTime")
    if not isinstance(ttl, int) or ended is None:
        return Outcome()
    left = ttl - seconds_since(now, ended)
    return Outcome(requeue_after=left) if left > 0 else Outcome(actions=(Delete(ref=Ref.of(raw)),))


def is_left_alone(raw: Object) -> bool:
    """Whether nothing is to be done: it is being deleted, paused (rule R18), or another controller's."""
    meta = raw["metadata"]
    return (
        meta.get("deletionTimestamp") is not None
        or meta.get("annotations", {}).get(ANNOTATION_RECONCILE) == "disabled"
        or raw.get("spec", {}).get("managedBy", MANAGED_BY_VALUE) != MANAGED_BY_VALUE
    )


def _refused(raw: Object, observed: Observed, error: ValidationError, now: datetime) -> Outcome:
    """The API server accepted what the models do not: the CRD is older than the operator, or the reverse."""
    first = error.errors()[0]
    where = ".".join(str(p) for p in first["loc"])
    message = f"{where}: {first['msg']}; correct the field, or bring the CRDs and the operator to one version"
    return _blocked(raw, observed, message, now)


def _blocked(raw: Object, observed: Observed, message: str, now: datetime) -> Outcome:
    """Nothing is created; an edit of the spec goes on. Who suspends it gets what runs stopped all the same."""
    status: dict[str, Any] = dict(raw.get("status", {}))
    before = tuple(Condition.model_validate(c) for c in status.get("conditions", ()))
    judged = Condition(type="Blocked", status="True", reason=Reason.INVALID_SPEC, message=message)
    generation = raw["metadata"].get("generation")
    merged = merge_conditions((judged,), before, now=rfc3339(now), generation=generation)
    status |= {"phase": "Blocked", "observedGeneration": generation, "conditions": [c.to_wire() for c in merged]}
    known = any(c.type == "Blocked" and c.status == "True" and c.message == message for c in before)
    events = () if known else (Event(type="Warning", reason=Reason.INVALID_SPEC, message=message[:1024]),)
    actions = _stopping(observed) if raw.get("spec", {}).get("suspend") is True else ()
    return Outcome(actions=actions, status=status, events=events, requeue_after=60.0)


def _stopping(observed: Observed) -> tuple[Action, ...]:
    """Ends what runs for an object that cannot be read: its Jobs are deleted, its objects of our kinds suspended."""
    actions: list[Action] = []
    for (kind, _), child in observed.children.items():
        if kind in KINDS and not child.get("spec", {}).get("suspend"):
            actions.append(Patch(ref=Ref.of(child), body={"spec": {"suspend": True}}))
        elif kind not in KINDS and not is_leaving(child):
            actions.append(Delete(ref=Ref.of(child)))
    return tuple(actions)
