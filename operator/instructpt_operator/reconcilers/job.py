"""Corpus, SynthesisJob, TrainingJob, EvaluationJob: stages one after the other, each with children of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime

from instructpt.api.common import InputStatus
from instructpt.api.reasons import Reason
from instructpt.api.runspec import StageResult
from instructpt.errors import ConfigError, PlanError
from instructpt.plan.model import Plan
from instructpt.plan.naming import ANNOTATION_INPUTS
from instructpt.plan.planner import AnyResource
from instructpt.plan.refs import frozen_input, refs_of
from instructpt.plan.status import Observation, Problem, StageObservation
from instructpt_operator.actions import Outcome
from instructpt_operator.observed import Observed
from instructpt_operator.reconcilers import common
from instructpt_operator.reconcilers.config import Config
from instructpt_operator.reconcilers.resources import parse
from instructpt_operator.reconcilers.stage import advance
from instructpt_operator.reconcilers.status import write_status
from instructpt_operator.reconcilers.visit import Visit


def reconcile_job(resource: AnyResource, observed: Observed, now: datetime, config: Config) -> Outcome:
    """Decide the next step of an object that has stages of its own."""
    visit = Visit.begin(resource, observed, now, config)
    if visit.has_ended:
        return common.after_end(visit)
    if observed.namespace_ends:
        return common.namespace_ends(visit)
    if resource.spec.suspend:
        return common.suspended(visit, known_plan(visit))
    try:
        plan = visit.plan() if freeze_inputs(visit) else None
    except (ConfigError, PlanError) as error:
        return write_status(visit, None, common.blocked(Reason.INVALID_SPEC, str(error)))
    if plan is None:
        reason, message = waiting_for(visit)
        visit.wake_in(visit.config.blocked_seconds)
        return write_status(visit, None, common.blocked(reason, message))
    early = common.deadline(visit) or _cannot_start(visit, plan)
    if early is not None:
        return write_status(visit, plan, Observation(stages={}, active=False, problem=early))
    return _go_on(visit, plan)


def _go_on(visit: Visit, plan: Plan) -> Outcome:
    seen: dict[str, StageObservation] = {}
    while (stage := plan.next_stage()) is not None:
        here = advance(visit, stage)
        seen[stage.step] = here.stage
        if here.result is None:
            return write_status(visit, plan, Observation(stages=seen, active=here.active, problem=here.problem))
        plan = visit.plan()
    problem = common.too_few_succeeded(visit.resource, plan)
    return write_status(visit, plan, Observation(stages=seen, active=False, problem=problem))


def _cannot_start(visit: Visit, plan: Plan) -> Problem | None:
    """What stands in the way before anything is created."""
    hindrance = common.hindrance(visit)
    if hindrance is not None:
        return hindrance
    if not visit.observed.launcher_installed and any(s.kind == "train" for s in plan.stages):
        visit.wake_in(visit.config.blocked_seconds)
        message = (
            f"the cluster has no resource for launcher {visit.config.launcher}; install the Kubeflow training "
            "operator v1.9 (kind PyTorchJob)"
        )
        return Problem(type="Blocked", reason=Reason.LAUNCHER_NOT_INSTALLED, message=message)
    return None


def known_plan(visit: Visit, more: Mapping[str, StageResult] | None = None) -> Plan | None:
    """The plan of an object that is suspended; ``None`` while an input is not frozen, and where there can be none."""
    known = {(i.kind, i.name) for i in visit.inputs}
    try:
        return visit.plan(more) if set(refs_of(visit.resource)) <= known else None
    except (ConfigError, PlanError):  # said once it is resumed; what runs stops all the same
        return None


def freeze_inputs(visit: Visit) -> bool:
    """Keep the outputs of all objects that are referred to; False while one is missing.

    What the pipeline froze when it started holds for its children, too, however much later they start.
    """
    wanted, known = refs_of(visit.resource), {(i.kind, i.name): i for i in (*handed_down(visit), *visit.inputs)}
    found: list[InputStatus] = []
    for key in wanted:
        raw = visit.observed.refs.get(key)
        frozen = known.get(key) or (None if raw is None else frozen_input(parse(raw)))
        if frozen is None:
            return False
        found.append(frozen)
    visit.inputs = tuple(found)
    return True


def handed_down(visit: Visit) -> tuple[InputStatus, ...]:
    """Inputs that a pipeline froze and handed to this child of it."""
    text = visit.resource.metadata.annotations.get(ANNOTATION_INPUTS)
    if text is None:
        return ()
    try:
        return tuple(InputStatus.model_validate(each) for each in json.loads(text))
    except ValueError:  # somebody wrote it by hand; what the refs name now is taken
        return ()


def waiting_for(visit: Visit) -> tuple[Reason, str]:
    """Which objects have no output yet, and what to do about it."""
    known = {(i.kind, i.name) for i in visit.inputs}
    said = []
    for kind, name in refs_of(visit.resource):
        raw = visit.observed.refs.get((kind, name))
        if (kind, name) in known or (raw is not None and frozen_input(parse(raw)) is not None):
            continue
        if raw is None:
            said.append(f"{kind} {name} does not exist in this namespace; create it, or correct the ref")
        else:
            phase = raw.get("status", {}).get("phase", "Pending")
            said.append(f"{kind} {name} is not complete yet (phase {phase})")
    return Reason.INPUT_NOT_READY, "; ".join(said)
