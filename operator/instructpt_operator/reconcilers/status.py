"""The whole status of one visit, as JSON: judged by the plan's function, merged with what stood there."""

from __future__ import annotations

from typing import Any

from instructpt.api.base import Condition, ObjectRef
from instructpt.api.reasons import Reason
from instructpt.plan.conditions import merge_conditions
from instructpt.plan.display import display
from instructpt.plan.model import Plan
from instructpt.plan.naming import LABEL_KIND, LABEL_NAME, LABEL_TASK, TASK_WORK
from instructpt.plan.status import Judged, Observation, judge
from instructpt_operator.actions import Outcome
from instructpt_operator.reconcilers.visit import Visit, rfc3339


def write_status(visit: Visit, plan: Plan | None, observation: Observation) -> Outcome:
    """The outcome of a visit: its actions, and the status that follows from what was seen."""
    resource, now = visit.resource, rfc3339(visit.now)
    judged = judge(resource, plan or Plan(kind=resource.kind, name=resource.metadata.name, stages=()), observation)
    before = resource.status
    conditions = merge_conditions(
        (*judged.conditions, *_own_conditions(resource.kind, judged)) if plan is not None else _unplanned(judged),
        before.conditions if before else (), now=now, generation=resource.metadata.generation,
    )  # fmt: skip
    wire: dict[str, Any] = judged.to_wire() if plan is not None else {"phase": _phase_unplanned(judged)}
    wire["conditions"] = [c.to_wire() for c in conditions]
    wire["observedGeneration"] = resource.metadata.generation
    wire["restarts"] = visit.restarts
    wire["attempt"] = max((s.attempt for s in visit.memory.values()), default=0)
    wire["stages"] = [s.to_wire() for s in visit.memory.values()]
    wire["inputs"] = [i.to_wire() for i in visit.inputs]
    wire["childRefs"] = [r.to_wire() for r in child_refs(visit)]
    wire["codeVersion"] = visit.code_version
    if visit.config.settings:
        wire["settings"] = visit.config.settings
    if visit.start_time is not None:
        wire["startTime"] = visit.start_time
    if any(c.type in ("Complete", "Failed") and c.status == "True" for c in conditions):
        wire["completionTime"] = now
    wire |= visit.extra
    wire |= _of_kind(resource.kind, visit, plan, observation, wire)
    wire["display"] = display(resource.kind, wire, resource.spec.to_wire())
    _announce(visit, conditions)
    return visit.outcome(wire, urgent=False)  # what is more than progress is written at once all the same


def child_refs(visit: Visit) -> list[ObjectRef]:
    """Children of our kinds; Jobs are found by their labels."""
    kinds = ("Corpus", "SynthesisJob", "TrainingJob", "EvaluationJob")
    found = sorted(k for k in visit.observed.children if k[0] in kinds)
    return [ObjectRef.model_validate({"kind": kind, "name": name}) for kind, name in found[:64]]


def _unplanned(judged: Judged) -> tuple[Condition, ...]:
    """Without a plan nothing is complete, whatever an empty list of stages looks like."""
    return tuple(c for c in judged.conditions if not (c.type == "Complete" and c.status == "True"))


def _phase_unplanned(judged: Judged) -> str:
    return "Pending" if judged.phase == "Complete" else judged.phase


def _own_conditions(kind: str, judged: Judged) -> tuple[Condition, ...]:
    """``Ready`` of a Corpus, ``Degraded`` of a synthesis, ``GatePassed`` where there is a gate."""
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
        if gate is None:
            return (Condition(type="GatePassed", status="Unknown", reason=Reason.PENDING),)
        passed = gate >= 1.0
        told = Reason.GATE_PASSED if passed else Reason.GATE_FAILED
        return (Condition(type="GatePassed", status="True" if passed else "False", reason=told),)
    return ()


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
        wanted = visit.resource.spec if kind == "EvaluationJob" else getattr(visit.resource.spec, "evaluation", None)
        none = getattr(wanted, "gate", None) is None
        return {"gate": "None" if none else "Pending" if gate is None else "Passed" if gate >= 1.0 else "Failed"}
    return {}


def _training(visit: Visit, plan: Plan | None, observation: Observation, wire: dict[str, Any]) -> dict[str, Any]:
    """Step, steps, loss and checkpoint: live from the workers, else as they stood, at the end from the result."""
    status = visit.resource.status
    out: dict[str, Any] = {n: getattr(status, n, None) for n in ("step", "steps", "loss", "checkpoint")}
    stage = next((s for s in plan.stages if s.kind == "train"), None) if plan is not None else None
    seen = observation.stages.get(stage.step) if stage is not None else None
    if seen is not None and seen.figures is not None and seen.figures.get("total"):
        gauges = seen.figures.get("gauges", {})
        out["step"], out["steps"] = seen.figures.get("done"), seen.figures.get("total")
        out["loss"] = gauges.get("loss", out["loss"])
        checkpoint = gauges.get("checkpoint_step")
        out["checkpoint"] = int(checkpoint) if checkpoint is not None else out["checkpoint"]
    if stage is not None and stage.result is not None:
        steps = stage.result.counts.get("steps")
        out["step"], out["steps"] = steps, steps
        out["loss"] = stage.result.scores.get("loss", out["loss"])
    return {k: v for k, v in out.items() if v is not None}


def _announce(visit: Visit, conditions: tuple[Condition, ...]) -> None:
    """An Event for each condition that became true (once: the status remembers), with its reason and message."""
    before = {c.type: c for c in (visit.resource.status.conditions if visit.resource.status else ())}
    for condition in conditions:
        old = before.get(condition.type)
        if condition.status != "True" or (
            old is not None and old.status == "True" and (old.reason == condition.reason or condition.type == "Running")
        ):
            continue
        if condition.type in ("Complete", "Failed", "Blocked", "Degraded", "GatePassed"):
            visit.say(
                condition.reason if condition.type != "Complete" else "Completed",
                condition.message or condition.type,
                warning=condition.type in ("Failed", "Blocked", "Degraded"),
            )
