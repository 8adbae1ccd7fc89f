"""InstructionPretraining: creates the other kinds in order, rolls their status up, and makes the report."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, Literal

from instructpt.api.common import StageResult
from instructpt.api.reasons import EventReason, Reason
from instructpt.api.v1alpha1 import InstructionPretraining
from instructpt.cluster.render import render_child
from instructpt.errors import ConfigError, PlanError
from instructpt.plan.display import of_total
from instructpt.plan.model import Plan
from instructpt.plan.naming import ANNOTATION_CODE_VERSION, ANNOTATION_INPUTS, child_name
from instructpt.plan.pipeline import STEP_SYNTHESIS, STEP_SYNTHESIZER, PlannedChild, children
from instructpt.plan.planner import AnyResource
from instructpt.plan.refs import is_true
from instructpt.plan.status import Observation, Problem, StageObservation
from instructpt_operator.actions import ConfirmAbsent, Create, Outcome, Patch, Ref
from instructpt_operator.observed import Observed
from instructpt_operator.reconcilers import common
from instructpt_operator.reconcilers.config import Config
from instructpt_operator.reconcilers.job import freeze_inputs, known_plan, waiting_for
from instructpt_operator.reconcilers.resources import parse
from instructpt_operator.reconcilers.stage import advance
from instructpt_operator.reconcilers.status import KINDS, write_status
from instructpt_operator.reconcilers.visit import Visit, rfc3339

PASSED_ON = (
    "suspend",
    "parallelism",
    "prepare_parallelism",
    "backoff_limit",
    "pod_template",
    "queue_name",
    "completion_policy",
)
"""Fields of a child's spec that follow an edit of the pipeline; all others are fixed once the child exists."""


def reconcile_pipeline(resource: InstructionPretraining, observed: Observed, now: datetime, config: Config) -> Outcome:
    """Decide the next step of a pipeline."""
    visit = Visit.begin(resource, observed, now, config)
    found = {key: parse(raw) for key, raw in observed.children.items() if key[0] in KINDS}
    visit.extra = _progress(resource.metadata.name, found)
    if visit.has_ended:
        _suspend_all(visit, found)
        return common.after_end(visit)
    if observed.namespace_ends:
        return common.namespace_ends(visit)
    if resource.spec.suspend:
        _suspend_all(visit, found)
        busy = any(not is_true(c, "Suspended") and not _has_ended(c) for c in found.values())
        return common.suspended(visit, known_plan(visit, _results(found)), busy=busy)
    try:
        plan = visit.plan(_results(found)) if freeze_inputs(visit) else None
    except (ConfigError, PlanError) as error:
        return write_status(visit, None, common.blocked(Reason.INVALID_SPEC, str(error)))
    if plan is None:
        reason, message = waiting_for(visit)
        visit.wake_in(visit.config.blocked_seconds)
        return write_status(visit, None, common.blocked(reason, message))
    problem = common.deadline(visit) or common.hindrance(visit)
    if problem is not None:
        return write_status(visit, plan, Observation(stages={}, active=False, problem=problem))
    return _go_on(visit, resource, plan, found)


def _go_on(
    visit: Visit, resource: InstructionPretraining, plan: Plan, found: dict[tuple[str, str], AnyResource]
) -> Outcome:
    planned = children(resource)
    by_step = {c.step: found.get((c.object.kind, c.object.metadata.name)) for c in planned}
    for child in planned:
        there = by_step[child.step]
        if there is not None:
            _pass_on(visit, child, there)
        elif all(_is_complete(by_step.get(need)) for need in child.needs):
            _create(visit, child)
    if visit.start_time is None and found:  # resumed: its clock starts anew
        visit.start_time = rfc3339(visit.now)
    problem = _problem(found) or _strayed(plan, found)
    seen = {s.step: _seen(plan, s.owner, found) for s in plan.stages}
    if problem is not None and problem.type == "Failed":
        _suspend_all(visit, found)
        return write_status(visit, plan, Observation(stages=seen, active=False, problem=problem))
    stage = plan.next_stage()
    if stage is None:
        return write_status(visit, plan, Observation(stages=seen, active=True, problem=problem))
    if stage.kind != "report":
        return write_status(visit, plan, Observation(stages=seen, active=True, problem=problem))
    here = advance(visit, stage)
    seen[stage.step] = here.stage
    if here.result is not None:
        plan = visit.plan(_results(found))
    return write_status(visit, plan, Observation(stages=seen, active=here.active, problem=here.problem))


def _create(visit: Visit, child: PlannedChild) -> None:
    obj = render_child(child, visit.context)
    obj["metadata"]["annotations"] = {ANNOTATION_CODE_VERSION: visit.code_version}
    if visit.inputs:
        handed = [i.to_wire() for i in visit.inputs]
        obj["metadata"]["annotations"][ANNOTATION_INPUTS] = json.dumps(handed, sort_keys=True)
    known = visit.resource.status.child_refs if visit.resource.status else ()
    if any(r.kind == child.object.kind and r.name == child.object.metadata.name for r in known):
        visit.actions.append(ConfirmAbsent(ref=Ref.of(obj)))  # it was there before: is it really gone?
    visit.actions.append(Create(object=obj, owner_uid=visit.uid))
    if visit.start_time is None:
        visit.start_time = rfc3339(visit.now)
    visit.say(EventReason.CHILD_CREATED, f"{child.object.kind} {child.object.metadata.name} for step {child.step}")


def _pass_on(visit: Visit, child: PlannedChild, there: AnyResource) -> None:
    """Narrow patches for edits that are allowed while a child exists (rule R12)."""
    if _has_ended(there) or there.metadata.uid is None:
        return
    wanted, has = child.object.spec, there.spec
    changed = [f for f in PASSED_ON if hasattr(wanted, f) and getattr(wanted, f) != getattr(has, f)]
    if not changed:
        return
    wire, before = wanted.to_wire(), has.to_wire()
    names = {f: type(wanted).model_fields[f].alias or f for f in changed}
    body: dict[str, Any] = {"spec": {n: _difference(before.get(n), wire.get(n)) for n in names.values()}}
    visit.actions.append(Patch(ref=common.own_ref(there), body=body))


def _difference(old: Any, new: Any) -> Any:
    """What a merge patch must say to turn one into the other: a key that is gone is null."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    gone = {key: None for key in old if key not in new}
    return gone | {key: _difference(old.get(key), value) for key, value in new.items() if old.get(key) != value}


def _suspend_all(visit: Visit, found: dict[tuple[str, str], AnyResource]) -> None:
    """Free what the children hold; they keep their work."""
    for child in found.values():
        if not child.spec.suspend and not _has_ended(child):
            visit.actions.append(Patch(ref=common.own_ref(child), body={"spec": {"suspend": True}}))


def _results(found: dict[tuple[str, str], AnyResource]) -> dict[str, StageResult]:
    """What the children's stages left, by stage key."""
    done: dict[str, StageResult] = {}
    for child in found.values():
        for stage in child.status.stages if child.status else ():
            # A synthesis with too few documents is Failed although its stage has a result.
            if stage.result is not None and not is_true(child, "Failed"):
                done[stage.key] = stage.result
    return done


def _problem(found: dict[tuple[str, str], AnyResource]) -> Problem | None:
    """The first child that failed, else the first that is blocked, else the first that waits in a queue."""
    for type_, wanted, status in _TROUBLES:
        for (kind, name), child in sorted(found.items()):
            conditions = child.status.conditions if child.status else ()
            told = next((c for c in conditions if (c.type, c.status) == (wanted, status)), None)
            if told is None:
                continue
            message = f"{kind} {name}: {told.reason}: {told.message}"
            known = type_ != "Failed" and told.reason in Reason.__members__.values()
            return Problem(type=type_, reason=Reason(told.reason) if known else Reason.CHILD_FAILED, message=message)
    return None


_TROUBLES: tuple[tuple[Literal["Failed", "Blocked", "Queued"], str, str], ...] = (
    ("Failed", "Failed", "True"),
    ("Blocked", "Blocked", "True"),
    ("Queued", "QuotaReserved", "False"),
)
"""What a child's trouble makes of its pipeline, and the condition of the child that tells of it."""


def _strayed(plan: Plan, found: dict[tuple[str, str], AnyResource]) -> Problem | None:
    """A child that is complete, but made something else than this pipeline plans: it was edited, or its ref moved."""
    stage = plan.next_stage()
    child = None if stage is None else found.get(stage.owner)
    if stage is None or not _is_complete(child):
        return None
    kind, name = stage.owner
    message = (
        f"{kind} {name} is complete, but step {stage.step} of this pipeline is to compute something else (the spec, "
        "the child or what it refers to was changed); delete the child, it is made again"
    )
    return Problem(type="Blocked", reason=Reason.INVALID_SPEC, message=message)


def _seen(plan: Plan, owner: tuple[str, str], found: dict[tuple[str, str], AnyResource]) -> StageObservation:
    """What the child's status tells of its stages."""
    child = found.get(owner)
    if child is None or child.status is None:
        return StageObservation()
    progress = child.status.progress
    figures = None
    if progress is not None and progress.unit not in ("", "stages"):
        figures = {"done": progress.done, "total": progress.total, "unit": progress.unit, "rates": {}, "gauges": {}}
    return StageObservation(running=not _has_ended(child), attempts=child.status.attempt, figures=figures)


def _progress(owner: str, found: dict[tuple[str, str], AnyResource]) -> dict[str, str]:
    """How far synthesis and the training of the arms are; tuning a synthesizer counts for neither."""
    out = {}
    synthesis = found.get(("SynthesisJob", child_name(owner, STEP_SYNTHESIS)))
    if synthesis is not None and synthesis.status is not None and synthesis.status.display is not None:
        out["synthesis"] = synthesis.status.display.progress or ""
    tuned = child_name(owner, STEP_SYNTHESIZER)
    arms = [
        c.status
        for (kind, name), c in found.items()
        if kind == "TrainingJob" and name != tuned and c.status is not None
    ]
    steps = [(getattr(s, "step", None) or 0, getattr(s, "steps", None)) for s in arms]
    if any(total for _, total in steps):
        out["training"] = of_total(sum(step for step, _ in steps), sum(total or 0 for _, total in steps))
    return out


def _is_complete(child: AnyResource | None) -> bool:
    return child is not None and is_true(child, "Complete")


def _has_ended(child: AnyResource) -> bool:
    return is_true(child, "Complete") or is_true(child, "Failed")
