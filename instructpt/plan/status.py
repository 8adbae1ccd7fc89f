"""(object, plan, what was observed) -> status: one function for kubectl, the CLI and the dashboards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from instructpt.api.base import Condition
from instructpt.api.common import OutputStatus, ProgressStatus, ShardCounts
from instructpt.api.reasons import Reason
from instructpt.plan.model import Plan, Stage
from instructpt.plan.planner import AnyResource

PHASES = {
    "inspect": "Inspecting",
    "synthesize": "Synthesizing",
    "tokenizer": "Preparing",
    "pack": "Preparing",
    "train": "Training",
    "evaluate": "Evaluating",
    "report": "Reporting",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StageObservation:
    """What was seen of one stage.

    Attributes:
        running: Whether workers run now.
        attempts: Times that its workers were started.
        error: Message of the last failure, if its last attempt failed.
        is_config: Whether that failure cannot be cured by a retry.
        figures: Merged ``/progress`` of its workers, if any answered.
        note: What else there is to say while it runs, such as why it is being repeated.
        reason: Of the condition Running while it runs; another one where a failure is being repeated.
    """

    running: bool = False
    attempts: int = 0
    error: str | None = None
    is_config: bool = False
    figures: Mapping[str, Any] | None = None
    note: str | None = None
    reason: Reason = Reason.RUNNING


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Why the object as a whole does not go on.

    Attributes:
        type: ``Failed`` is final; ``Blocked`` waits for the user.
        message: What it means and what to do.
    """

    type: Literal["Failed", "Blocked"]
    reason: Reason
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What was seen of a run.

    Attributes:
        stages: By step.
        active: Whether anything works on the run at all.
        problem: What stands in the way of the object as a whole, if anything.
    """

    stages: Mapping[str, StageObservation]
    active: bool
    problem: Problem | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The part of a status that follows from what was observed."""

    phase: str
    conditions: tuple[Condition, ...]
    progress: ProgressStatus | None
    shards: ShardCounts | None
    counts: Mapping[str, int]
    scores: Mapping[str, float]
    attempt: int
    output: OutputStatus | None

    def to_wire(self) -> dict[str, Any]:
        """As it stands under ``status``."""
        wire: dict[str, Any] = {"phase": self.phase, "conditions": [c.to_wire() for c in self.conditions]}
        for name in ("progress", "shards", "output"):
            part = getattr(self, name)
            if part is not None:
                wire[name] = part.to_wire()
        wire |= {"counts": dict(self.counts), "scores": dict(self.scores), "attempt": self.attempt}
        return wire


def judge(resource: AnyResource, plan: Plan, observed: Observation) -> Judged:
    """The status of an object.

    Args:
        resource: The object.
        plan: Its plan, with the results that are known.
        observed: What was seen of its stages.
    """
    current = next((s for s in plan.stages if s.result is None), None)
    seen = observed.stages.get(current.step, StageObservation()) if current else StageObservation()
    counts, scores = _totals(plan)
    return Judged(
        phase=_phase(resource, current, seen, observed),
        conditions=_conditions(resource, current, seen, observed),
        progress=_progress(plan, seen),
        shards=_shards(current, seen),
        counts=counts,
        scores=scores,
        attempt=max((o.attempts for o in observed.stages.values()), default=0),
        output=_output(plan),
    )


def _phase(resource: AnyResource, current: Stage | None, seen: StageObservation, observed: Observation) -> str:
    if observed.problem is not None and (observed.problem.type == "Failed" or not resource.spec.suspend):
        return observed.problem.type
    if current is None:
        return "Complete"
    if seen.error is not None and not observed.active:
        return "Failed"
    if resource.spec.suspend:
        return "Suspended"
    if observed.active:
        return PHASES[current.kind]
    return "Stopped" if observed.stages else "Pending"


def _conditions(
    resource: AnyResource, current: Stage | None, seen: StageObservation, observed: Observation
) -> tuple[Condition, ...]:
    def condition(type_: str, holds: bool, reason: Reason, message: str = "") -> Condition:
        return Condition(type=type_, status="True" if holds else "False", reason=reason, message=message[:4096])

    problem = observed.problem
    if problem is not None and (problem.type == "Failed" or not resource.spec.suspend):
        running = observed.active and problem.type == "Blocked"
        return (
            condition(problem.type, True, problem.reason, problem.message),
            condition("Running", running, problem.reason, problem.message),
        )
    if current is None:
        return (condition("Complete", True, Reason.COMPLETED), condition("Running", False, Reason.COMPLETED))
    if seen.error is not None and not observed.active:
        reason = Reason.INVALID_SPEC if seen.is_config else Reason.STAGE_FAILED
        message = f"step {current.step}: {seen.error}"
        return (condition("Failed", True, reason, message), condition("Running", False, reason, message))
    if resource.spec.suspend:
        return (condition("Suspended", True, Reason.SUSPENDED, "set spec.suspend to false to go on"),)
    if observed.active:
        said = f"step {current.step}, attempt {max(seen.attempts, 1)}" + (f"; {seen.note}" if seen.note else "")
        return (condition("Running", True, seen.reason, said),)
    if observed.stages:
        return (condition("Running", False, Reason.STOPPED, "run the same command again to go on"),)
    return (condition("Running", False, Reason.PENDING),)


def _progress(plan: Plan, seen: StageObservation) -> ProgressStatus:
    figures = seen.figures
    if figures and figures.get("total"):
        rate = figures.get("rates", {}).get(f"{figures['unit']}_per_second")
        left = figures["total"] - figures["done"]
        eta = int(left / rate) if rate else None
        return ProgressStatus(done=figures["done"], total=figures["total"], unit=figures["unit"], eta_seconds=eta)
    done = sum(s.result is not None for s in plan.stages)
    return ProgressStatus(done=done, total=len(plan.stages), unit="stages")


def _shards(current: Stage | None, seen: StageObservation) -> ShardCounts | None:
    figures = seen.figures
    if current is None or not figures or figures.get("unit") != "shards":
        return None
    return ShardCounts(total=figures["total"], succeeded=figures["done"])


def _totals(plan: Plan) -> tuple[dict[str, int], dict[str, float]]:
    """Counts of the last stage that counts documents, and scores of the last that has some."""
    counts: dict[str, int] = {}
    scores: dict[str, float] = {}
    for stage in plan.stages:
        if stage.result is None:
            continue
        if stage.kind in ("inspect", "synthesize") or plan.kind == "TrainingJob":
            counts = {**counts, **stage.result.counts}
        if stage.kind in ("train", "evaluate", "report") and stage.result.scores:
            scores = dict(stage.result.scores)
    return counts, scores


def _output(plan: Plan) -> OutputStatus | None:
    last = plan.stages[-1].result if plan.stages else None
    return None if last is None else OutputStatus(uri=last.uri, digest=last.digest)
