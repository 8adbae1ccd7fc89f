"""The whole status of one visit, as JSON: judged by the plan's function, merged with what stood there."""

from __future__ import annotations

from typing import Any

from instructpt.api.base import Condition, ObjectRef
from instructpt.api.reasons import EventReason, Reason
from instructpt.cluster.observe import work_state
from instructpt.plan.conditions import merge_conditions
from instructpt.plan.display import display
from instructpt.plan.model import Plan
from instructpt.plan.naming import LABEL_KIND, LABEL_NAME, LABEL_TASK, TASK_WORK
from instructpt.plan.status import Judged, Observation, judge
from instructpt_operator.actions import Create, Outcome
from instructpt_operator.reconcilers.restarts import restarts
from instructpt_operator.reconcilers.visit import Visit, is_leaving, rfc3339

KINDS = ("Corpus", "SynthesisJob", "TrainingJob", "EvaluationJob")
"""Of ours, those that a pipeline creates."""


def write_status(visit: Visit, plan: Plan | None, observation: Observation) -> Outcome:
    """The outcome of a visit: its actions, and the status that follows from what was seen."""
    resource, now = visit.resource, rfc3339(visit.now)
    judged = judge(resource, plan, observation)
    before = resource.status
    conditions = merge_conditions(
        judged.conditions if plan is None else (
            *judged.conditions, *_own_conditions(resource.kind, judged, has_gate=_has_gate(visit)),
            *_quota(visit, judged, observation),
        ),
        before.conditions if before else (), now=now, generation=resource.metadata.generation,
    )  # fmt: skip
    wire: dict[str, Any] = judged.to_wire() if plan is not None else {"phase": judged.phase}
    wire["conditions"] = [c.to_wire() for c in conditions]
    wire["observedGeneration"] = resource.metadata.generation
    wire["restarts"] = visit.restarts
    wire["workers"] = _workers(visit)
    wire["attempt"] = max((s.attempt for s in visit.memory.values()), default=0)
    wire["stages"] = [s.to_wire() for s in visit.memory.values()]
    wire["inputs"] = [i.to_wire() for i in visit.inputs]
    wire["childRefs"] = [r.to_wire() for r in child_refs(visit)]
    wire["codeVersion"] = visit.code_version
    known = before.settings if before is not None else None
    settings = visit.config.settings if known is None or _creates(visit) else known
    if settings:
        wire["settings"] = settings
    if visit.start_time is not None:
        wire["startTime"] = visit.start_time
    if any(c.type in ("Complete", "Failed") and c.status == "True" for c in conditions):
        wire["completionTime"] = now
    wire |= visit.extra
    wire |= _of_kind(resource.kind, visit, plan, observation, wire)
    wire["display"] = display(resource.kind, wire, resource.spec.to_wire())
    _announce(visit, conditions)
    return visit.outcome(wire, urgent=False)  # what is more than progress is written at once all the same


def _quota(visit: Visit, judged: Judged, observation: Observation) -> tuple[Condition, ...]:
    """``QuotaReserved`` of an object with a queue, unless it was judged already: it waits to be admitted."""
    if visit.resource.spec.queue_name is None or any(c.type == "QuotaReserved" for c in judged.conditions):
        return ()
    works = observation.active and _workers(visit) > 0
    reason = Reason.ADMITTED if works else Reason.PENDING
    return (Condition(type="QuotaReserved", status="True" if works else "Unknown", reason=reason),)


def _workers(visit: Visit) -> int:
    """Pods that work now, of its own children and of those of a pipeline's."""
    total = 0
    for (kind, _), child in visit.observed.children.items():
        if kind in KINDS:
            total += (child.get("status") or {}).get("workers") or 0
        elif child["metadata"].get("labels", {}).get(LABEL_TASK) == TASK_WORK and not is_leaving(child):
            total += work_state(child).ready
    return total


def _creates(visit: Visit) -> bool:
    """Whether this visit makes a child: with the settings of now."""
    return any(isinstance(action, Create) for action in visit.actions)


def child_refs(visit: Visit) -> list[ObjectRef]:
    """Children of our kinds; Jobs are found by their labels."""
    found = sorted(k for k in visit.observed.children if k[0] in KINDS)
    return [ObjectRef.model_validate({"kind": kind, "name": name}) for kind, name in found[:64]]


def _own_conditions(kind: str, judged: Judged, *, has_gate: bool) -> tuple[Condition, ...]:
    """``Ready`` of a Corpus, ``Degraded`` of a synthesis, ``GatePassed`` where models are compared."""
    complete = any(c.type == "Complete" and c.status == "True" for c in judged.conditions)
    reason = Reason(judged.conditions[0].reason) if judged.conditions else Reason.PENDING
    if kind == "Corpus":
        return (Condition(type="Ready", status="True" if complete else "False", reason=reason),)
    if kind == "SynthesisJob":
        dead = judged.counts.get("dead_letters", 0)
        message = f"{dead} documents are dead letters" if dead else ""
        degraded = Reason.COMPLETED_WITH_FAILURES if dead else reason
        return (Condition(type="Degraded", status="True" if dead else "False", reason=degraded, message=message),)
    if kind in ("EvaluationJob", "InstructionPretraining"):
        gate = judged.scores.get("gate")
        if not has_gate:
            return (Condition(type="GatePassed", status="Unknown", reason=Reason.NO_GATE),)
        if gate is None:
            return (Condition(type="GatePassed", status="Unknown", reason=Reason.PENDING),)
        passed = gate >= 1.0
        told = Reason.GATE_PASSED if passed else Reason.GATE_FAILED
        return (Condition(type="GatePassed", status="True" if passed else "False", reason=told),)
    return ()


def _has_gate(visit: Visit) -> bool:
    spec = visit.resource.spec
    return getattr(getattr(spec, "evaluation", spec), "gate", None) is not None


def _of_kind(
    kind: str, visit: Visit, plan: Plan | None, observation: Observation, wire: dict[str, Any]
) -> dict[str, Any]:
    """Fields that only one kind has."""
    if kind == "SynthesisJob":
        labels = {LABEL_KIND: kind, LABEL_NAME: visit.resource.metadata.name, LABEL_TASK: TASK_WORK}
        return {"selector": ",".join(f"{name}={value}" for name, value in labels.items())}
    if kind == "TrainingJob":
        return {"launcher": visit.config.launcher, **_training(visit, plan, observation, wire)}
    if kind in ("EvaluationJob", "InstructionPretraining"):
        gate = wire.get("scores", {}).get("gate")
        if not _has_gate(visit):
            return {"gate": "None"}
        return {"gate": "Pending" if gate is None else "Passed" if gate >= 1.0 else "Failed"}
    return {}


def _training(visit: Visit, plan: Plan | None, observation: Observation, wire: dict[str, Any]) -> dict[str, Any]:
    """Step, steps, loss and checkpoint: live from the workers, else as they stood, at the end from the result."""
    status = visit.resource.status
    out: dict[str, Any] = {n: getattr(status, n, None) for n in ("step", "steps", "loss", "checkpoint")}
    out["validationLoss"] = getattr(status, "validation_loss", None)
    stage = next((s for s in plan.stages if s.kind == "train"), None) if plan is not None else None
    seen = observation.stages.get(stage.step) if stage is not None else None
    if seen is not None and seen.figures is not None and seen.figures.get("total"):
        gauges = seen.figures.get("gauges", {})
        out["step"], out["steps"] = seen.figures.get("done"), seen.figures.get("total")
        out["loss"] = gauges.get("loss", out["loss"])
        out["validationLoss"] = gauges.get("validation_loss", out["validationLoss"])
        checkpoint = gauges.get("checkpoint_step")
        out["checkpoint"] = int(checkpoint) if checkpoint is not None else out["checkpoint"]
    if stage is not None and stage.result is not None:
        steps = stage.result.counts.get("steps")
        out["step"], out["steps"] = steps, steps
        out["loss"] = stage.result.scores.get("final_loss", out["loss"])
        out["checkpoint"] = stage.result.counts.get("checkpoint", out["checkpoint"])
        out["validationLoss"] = stage.result.scores.get("validation_loss", out["validationLoss"])
    out |= restarts(visit, seen)
    return {k: v for k, v in out.items() if v is not None}


_ANNOUNCED = ("Complete", "Failed", "Blocked", "Degraded", "Suspended", "GatePassed")


def _announce(visit: Visit, conditions: tuple[Condition, ...]) -> None:
    """An Event for each condition that became true (once: the status remembers), with its reason and message.

    A gate that was not passed is news as well.
    """
    before = {c.type: c for c in (visit.resource.status.conditions if visit.resource.status else ())}
    for condition in conditions:
        old = before.get(condition.type)
        told = condition.status == "True" or condition.reason == Reason.GATE_FAILED
        if condition.type not in _ANNOUNCED or not told:
            continue
        if old is not None and (old.status, old.reason) == (condition.status, condition.reason):
            continue
        visit.say(
            Reason(condition.reason) if condition.type != "Complete" else EventReason.COMPLETED,
            condition.message or condition.type,
            warning=condition.type in ("Failed", "Blocked", "Degraded") or condition.status == "False",
        )
