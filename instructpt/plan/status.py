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
"""Of a pipeline. The other kinds have one thing to do: they are Running, and a training is Preparing before that."""

LIVE_COUNTS = ("inspect", "synthesize")
"""Stages whose workers tell counts that stand in the status while they run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageObservation:
    """What was seen of one stage.

    Attributes:
        running: Whether workers run now.
        attempts: Times that its workers were started.
        error: Message of the last failure, if its last attempt failed.
        is_config: Whether that failure cannot be cured by a retry.
        figures: Merged ``/progress`` of its workers, if any answered.
        figures_at: RFC 3339: when they did, where that matters.
        stale: Whether that is so long ago that rates and times left mean nothing any more.
        note: What else there is to say while it runs, such as why it is being repeated.
        reason: Of the condition Running while it runs; another one where a failure is being repeated.
    """

    running: bool = False
    attempts: int = 0
    error: str | None = None
    is_config: bool = False
    figures: Mapping[str, Any] | None = None
    figures_at: str | None = None
    stale: bool = False
    note: str | None = None
    reason: Reason = Reason.RUNNING


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Why the object as a whole does not go on.

    Attributes:
        type: ``Failed`` is final; ``Blocked`` waits for the user, ``Queued`` for a queue to admit it.
        message: What it means and what to do.
    """

    type: Literal["Failed", "Blocked", "Queued"]
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


def judge(resource: AnyResource, plan: Plan | None, observed: Observation) -> Judged:
    """The status of an object.

    Args:
        resource: The object.
        plan: Its plan, with the results that are known; ``None`` while there can be none, so that nothing is complete.
        observed: What was seen of its stages.
    """
    if plan is None:
        return _unplanned(resource, observed)
    current = next((s for s in plan.stages if s.result is None), None)
    seen = observed.stages.get(current.step, StageObservation()) if current else StageObservation()
    counts, scores = _totals(plan)
    return Judged(
        phase=_phase(resource, current, seen, observed),
        conditions=_conditions(resource, current, seen, observed, counts),
        progress=_progress(plan, seen),
        shards=_shards(resource, plan, current, seen),
        counts={**counts, **_live_counts(resource, current, seen)},
        scores=scores,
        attempt=max((o.attempts for o in observed.stages.values()), default=0),
        output=_output(plan),
    )


def _unplanned(resource: AnyResource, observed: Observation) -> Judged:
    problem = observed.problem
    phase: str
    conditions: tuple[Condition, ...]
    if problem is None and resource.spec.suspend:
        phase, conditions = _suspended_phase(observed), (_suspended(observed),)
    elif problem is not None:
        phase, conditions = problem.type, _troubled(problem, observed)
    else:
        phase, conditions = "Pending", (_condition("Running", False, Reason.PENDING),)
    return Judged(
        phase=phase, conditions=conditions, progress=None, shards=None, counts={}, scores={}, attempt=0, output=None
    )


def _condition(type_: str, holds: bool, reason: Reason, message: str = "") -> Condition:
    return Condition(type=type_, status="True" if holds else "False", reason=reason, message=message[:4096])


def _suspended(observed: Observation) -> Condition:
    if observed.active:
        return _condition("Suspended", False, Reason.SUSPENDING, "workers are leaving; committed work is kept")
    return _condition("Suspended", True, Reason.SUSPENDED, "set spec.suspend to false to go on")


def _suspended_phase(observed: Observation) -> str:
    return "Suspending" if observed.active else "Suspended"


def _troubled(problem: Problem, observed: Observation) -> tuple[Condition, ...]:
    if problem.type == "Queued":
        return (
            _condition("QuotaReserved", False, problem.reason, problem.message),
            _condition("Running", False, problem.reason, problem.message),
        )
    running = observed.active and problem.type == "Blocked"
    return (
        _condition(problem.type, True, problem.reason, problem.message),
        _condition("Running", running, problem.reason, problem.message),
    )


def _phase(resource: AnyResource, current: Stage | None, seen: StageObservation, observed: Observation) -> str:
    if observed.problem is not None and (observed.problem.type == "Failed" or not resource.spec.suspend):
        return observed.problem.type
    if current is None:
        return "Ready" if resource.kind == "Corpus" else "Complete"
    if seen.error is not None and not observed.active:
        return "Failed"
    if resource.spec.suspend:
        return _suspended_phase(observed)
    if observed.active:
        phase = PHASES[current.kind]
        return phase if resource.kind == "InstructionPretraining" or phase == "Preparing" else "Running"
    return "Stopped" if observed.stages else "Pending"


def _conditions(
    resource: AnyResource,
    current: Stage | None,
    seen: StageObservation,
    observed: Observation,
    counts: Mapping[str, int],
) -> tuple[Condition, ...]:
    problem = observed.problem
    if problem is not None and (problem.type == "Failed" or not resource.spec.suspend):
        return _troubled(problem, observed)
    if current is None:
        dead = counts.get("dead_letters", 0) if resource.kind == "SynthesisJob" else 0
        reason = Reason.COMPLETED_WITH_FAILURES if dead else Reason.COMPLETED
        said = f"{dead} documents are dead letters: see their reasons beside the output" if dead else ""
        return (_condition("Complete", True, reason, said), _condition("Running", False, reason))
    if seen.error is not None and not observed.active:
        reason = Reason.INVALID_SPEC if seen.is_config else Reason.STAGE_FAILED
        message = f"step {current.step}: {seen.error}"
        return (_condition("Failed", True, reason, message), _condition("Running", False, reason, message))
    if resource.spec.suspend:
        told = () if problem is None else (_condition(problem.type, True, problem.reason, problem.message),)
        return (_suspended(observed), *told)
    if observed.active:
        notes = (seen.figures or {}).get("notes", {}).values() if not seen.stale else ()
        noted = "; ".join(text for text in (seen.note, *notes) if text)
        said = f"step {current.step}, attempt {max(seen.attempts, 1)}" + (f"; {noted}" if noted else "")
        return (_condition("Running", True, seen.reason, said),)
    if observed.stages:
        return (_condition("Running", False, Reason.STOPPED, "run the same command again to go on"),)
    return (_condition("Running", False, Reason.PENDING),)


def _progress(plan: Plan, seen: StageObservation) -> ProgressStatus:
    figures = seen.figures
    if figures and figures.get("total"):
        speed, rates, gauges = figures.get("per_second"), figures.get("rates", {}), figures.get("gauges", {})
        live = {} if seen.stale else {
            "eta_seconds": int((figures["total"] - figures["done"]) / speed) if speed else None,
            "tokens_per_second": rates.get("tokens_per_second"),
            "mfu": gauges.get("mfu"),
        }  # fmt: skip
        return ProgressStatus(
            done=figures["done"], total=figures["total"], unit=figures["unit"], last_updated_time=seen.figures_at,
            stale=seen.stale or None, **live,
        )  # fmt: skip
    last = plan.stages[-1].result if plan.stages else None
    if plan.kind == "EvaluationJob" and last is not None and last.counts.get("tasks"):
        return ProgressStatus(done=last.counts["tasks"], total=last.counts["tasks"], unit="tasks")
    done = sum(s.result is not None for s in plan.stages)
    return ProgressStatus(done=done, total=len(plan.stages), unit="stages")


def _shards(resource: AnyResource, plan: Plan, current: Stage | None, seen: StageObservation) -> ShardCounts | None:
    """Of the stage under way; of a Corpus and a SynthesisJob, which have one stage, they stay when nobody answers."""
    if resource.kind in ("Corpus", "SynthesisJob") and current is None:
        made = (plan.stages[-1].result.counts if plan.stages and plan.stages[-1].result else {}).get("shards")
        return None if made is None else ShardCounts(total=made, succeeded=made)
    figures = seen.figures
    if current is not None and figures and figures.get("unit") == "shards":
        return ShardCounts(total=figures["total"], succeeded=figures["done"])
    if resource.kind in ("Corpus", "SynthesisJob") and resource.status is not None:
        return resource.status.shards
    return None


def _live_counts(resource: AnyResource, current: Stage | None, seen: StageObservation) -> dict[str, int]:
    """What the workers that answer have made: at least so much, for those that are gone cannot tell any more."""
    if current is None or current.kind not in LIVE_COUNTS or resource.kind == "InstructionPretraining":
        return {}
    before = resource.status.counts if resource.status is not None else {}
    told = (seen.figures or {}).get("counts", {})
    return {name: max(int(told.get(name, 0)), before.get(name, 0)) for name in {*told, *before}}


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
