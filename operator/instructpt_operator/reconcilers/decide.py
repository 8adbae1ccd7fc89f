"""One entry for all kinds: (object, observed, now, config) -> Outcome."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import ValidationError

from instructpt.api.base import Condition
from instructpt.api.reasons import Reason
from instructpt.api.v1alpha1 import InstructionPretraining
from instructpt.errors import ConfigError, PlanError
from instructpt.plan.conditions import has_ended, merge_conditions
from instructpt.plan.naming import ANNOTATION_RECONCILE, MANAGED_BY_VALUE
from instructpt.plan.planner import AnyResource
from instructpt_operator.actions import Event, Object, Outcome
from instructpt_operator.observed import Observed
from instructpt_operator.reconcilers.config import Config
from instructpt_operator.reconcilers.job import reconcile_job
from instructpt_operator.reconcilers.pipeline import reconcile_pipeline
from instructpt_operator.reconcilers.resources import parse
from instructpt_operator.reconcilers.visit import rfc3339


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
    except ValidationError as error:
        return _refused(raw, error, now)
    fresh = resource.status is None or not (resource.status.stages or resource.status.child_refs)
    if resource.spec.cleanup_policy == "Delete" and fresh and not _has_ended(resource):
        return _blocked(raw, "spec.cleanupPolicy='Delete' is not available yet; use Retain and remove the outputs", now)
    try:
        if isinstance(resource, InstructionPretraining):
            return reconcile_pipeline(resource, observed, now, config)
        return reconcile_job(resource, observed, now, config)
    except ValidationError as error:  # of a child, or of an object that is referred to
        return _refused(raw, error, now)
    except (ConfigError, PlanError) as error:
        return _blocked(raw, str(error), now)


def _has_ended(resource: AnyResource) -> bool:
    return resource.status is not None and has_ended(resource.status.conditions)


def is_left_alone(raw: Object) -> bool:
    """Whether nothing is to be done: it is being deleted, paused (rule R18), or another controller's."""
    meta = raw["metadata"]
    return (
        meta.get("deletionTimestamp") is not None
        or meta.get("annotations", {}).get(ANNOTATION_RECONCILE) == "disabled"
        or raw.get("spec", {}).get("managedBy", MANAGED_BY_VALUE) != MANAGED_BY_VALUE
    )


def _refused(raw: Object, error: ValidationError, now: datetime) -> Outcome:
    """The API server accepted what the models do not: the CRD is older than the operator, or the reverse."""
    first = error.errors()[0]
    where = ".".join(str(p) for p in first["loc"])
    message = f"{where}: {first['msg']}; correct the field, or bring the CRDs and the operator to one version"
    return _blocked(raw, message, now)


def _blocked(raw: Object, message: str, now: datetime) -> Outcome:
    """Nothing is created; an edit of the spec goes on."""
    status: dict[str, Any] = dict(raw.get("status", {}))
    before = tuple(Condition.model_validate(c) for c in status.get("conditions", ()))
    judged = Condition(type="Blocked", status="True", reason=Reason.INVALID_SPEC, message=message)
    generation = raw["metadata"].get("generation")
    merged = merge_conditions((judged,), before, now=rfc3339(now), generation=generation)
    status |= {"phase": "Blocked", "observedGeneration": generation, "conditions": [c.to_wire() for c in merged]}
    known = any(c.type == "Blocked" and c.status == "True" and c.message == message for c in before)
    events = () if known else (Event(type="Warning", reason=Reason.INVALID_SPEC, message=message[:1024]),)
    return Outcome(status=status, events=events, requeue_after=60.0)
