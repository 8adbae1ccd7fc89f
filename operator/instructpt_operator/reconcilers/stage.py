"""One stage of an object, from nothing to its result: attempts, the finishing task, failures, retries.

The state is read from the children and from what the status remembers, never from an event. Attempt n of the workers is
followed by the finishing task n; its termination message is the result. A failure is first written to the status and
acted on by the next visit, so that a crash in between counts it once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from instructpt.api.common import StageResult, StageStatus
from instructpt.api.reasons import EventReason, Reason
from instructpt.cluster.observe import work_state
from instructpt.cluster.render import render_runspec, render_task
from instructpt.plan.model import Stage, Task
from instructpt.plan.naming import (
    ANNOTATION_KEY,
    LABEL_ATTEMPT,
    LABEL_STEP,
    LABEL_TASK,
    TASK_FINALIZE,
    TASK_WORK,
)
from instructpt.plan.status import Problem, StageObservation
from instructpt_operator.actions import ConfirmAbsent, ConfirmFresh, Create, Delete, Object, Patch, Ref
from instructpt_operator.observed import PodFacts
from instructpt_operator.reconcilers.common import lost, stays
from instructpt_operator.reconcilers.failures import (
    Failure,
    judge_failure,
    judge_problem,
    mostly_failed,
    taken_away,
    unreadable,
)
from instructpt_operator.reconcilers.restarts import note_restart, note_start
from instructpt_operator.reconcilers.template import is_corrected, marked
from instructpt_operator.reconcilers.visit import Visit, is_leaving, rfc3339, seconds_since


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Where a stage stands after a visit.

    Attributes:
        active: Whether something works on it, or will without the user's doing.
        result: Set once it is done.
        interim: What pods say, for the status.
    """

    stage: StageObservation
    active: bool = True
    problem: Problem | None = None
    result: StageResult | None = None


def advance(visit: Visit, stage: Stage) -> Seen:
    """Look at one stage and ask for its next step."""
    work, finalize = _latest(visit, stage, TASK_WORK), _latest(visit, stage, TASK_FINALIZE)
    visit.began(work, finalize)
    record = visit.catch_up(stage, max((_attempt(c) for c in (work, finalize) if c is not None), default=0))
    attempt = record.attempt
    outdated = [c for c in (work, finalize) if c is not None and _is_outdated(c, stage, record)]
    if outdated or attempt == 0 or record.failed_attempt >= attempt:
        return _next_attempt(visit, stage, record, [c for c in (work, finalize) if c is not None])
    work = work if work is not None and _attempt(work) == attempt else None
    finalize = finalize if finalize is not None and _attempt(finalize) == attempt else None
    if finalize is not None:
        return _finalizing(visit, stage, record, finalize)
    if work is None:
        if stage.work is None:  # only a finishing task, and it is gone
            return _create_finalize(visit, stage, record)
        # Somebody deleted it, or the cache lags: the live read in front of the next attempt tells which.
        visit.say(Reason.DISRUPTED, f"step {stage.step}: attempt {attempt} is gone; starting the next", warning=True)
        return _start(visit, stage, record)
    return _working(visit, stage, record, work)


def _working(visit: Visit, stage: Stage, record: StageStatus, work: Object) -> Seen:
    state, facts = work_state(work), visit.observed.pods.get(work["metadata"]["name"])
    if is_leaving(work):
        return _leaving(visit, stage, record, [work])
    if state.phase == "Succeeded":
        return _create_finalize(visit, stage, record)
    if state.phase == "Failed":
        if facts is None:  # nobody has looked at its pods yet
            visit.wake_in(1.0)
            return _running(visit, stage, record)
        failure = judge_failure(state, facts, expected=stage.replicas if stage.kind == "train" else 0)
        if failure.permanent or stage.kind == "train":
            return _failed(visit, stage, record, failure, facts)
        # Other workers may have done the failed one's part: the ledger knows.
        return _create_finalize(visit, stage, record)
    if stage.kind == "train" and facts is not None and facts.replaced:
        return _failed(visit, stage, record, taken_away(facts.replaced), facts)
    _scale(visit, stage, work)
    assert stage.work is not None
    seen = _active(visit, stage, stage.work, record, work)
    if _is_stuck(seen) and is_corrected(visit, work):
        visit.say(
            EventReason.CORRECTED, f"step {stage.step}: podTemplate has changed; attempt {record.attempt} gives way"
        )
        # It never ran, so nobody is to blame: the next one starts at once and counts as no failure.
        record = visit.remember(record, failed_attempt=record.attempt, last_failure_time=None)
        return _next_attempt(visit, stage, record, [work])
    return seen


def _scale(visit: Visit, stage: Stage, work: Object) -> None:
    """Follow an edit of parallelism: an Indexed Job is elastic where both numbers move together."""
    spec = work.get("spec", {})
    if work["kind"] == "Job" and "parallelism" in spec and spec["parallelism"] != stage.replicas:
        body = {"spec": {"parallelism": stage.replicas, "completions": stage.replicas}}
        visit.actions.append(Patch(ref=Ref.of(work), body=body))
        visit.say(EventReason.SCALED, f"step {stage.step}: {spec['parallelism']} to {stage.replicas} workers")


def _active(visit: Visit, stage: Stage, task: Task, record: StageStatus, child: Object) -> Seen:
    """Pods exist and have not ended: what they say, or why they do not start."""
    state, facts = work_state(child), visit.observed.pods.get(child["metadata"]["name"])
    problem, note, reason = lost(visit, child, is_gang=stage.kind == "train"), None, Reason.RUNNING
    figures, told_at = (facts.figures, facts.figures_at) if facts is not None else (None, None)
    stale = told_at is not None and (visit.now - told_at).total_seconds() > visit.config.stale_seconds
    if problem is not None:
        pass  # nothing else matters before that pod is gone
    elif facts is not None and facts.problems and (stage.kind == "train" or facts.running == 0):
        blocked, message = judge_problem(facts.problems[0])
        problem = Problem(type="Blocked", reason=blocked, message=f"step {stage.step}: {message}")
        _restore_runspec(visit, task, message)
    elif state.phase == "Suspended":
        message = (
            f"step {stage.step} waits for admission by queue {visit.resource.spec.queue_name or '(none is named)'}"
        )
        problem = Problem(type="Queued", reason=Reason.QUEUED, message=message)
    elif facts is not None and (figures is None or stale) and mostly_failed(facts):
        # The Job tries again by itself, with longer and longer waits: what is wrong is said before it gives up.
        failure = judge_failure(state, facts)
        reason, note = failure.reason, failure.message + ("" if failure.permanent else "; it is tried again")
    running = facts is not None and facts.running > 0
    visit.wake_in(visit.config.progress_seconds if running else visit.config.start_seconds)
    stage_seen = StageObservation(
        running=True, attempts=record.attempt, figures=figures, note=note, reason=reason, stale=stale,
        figures_at=None if told_at is None else rfc3339(told_at),
    )  # fmt: skip
    return Seen(stage=stage_seen, problem=problem)


def _restore_runspec(visit: Visit, task: Task, message: str) -> None:
    """Somebody deleted the ConfigMap that the pods wait for; it is a function of the plan."""
    config = render_runspec(task, visit.context)
    if "not found" in message and f'"{config["metadata"]["name"]}"' in message:
        visit.actions.append(Create(object=config, owner_uid=visit.uid))


def _is_stuck(seen: Seen) -> bool:
    """Whether pods do not start for a reason that podTemplate may cure; one that waits in a queue is not stuck."""
    return seen.problem is not None and seen.problem.type != "Queued" and not seen.stage.figures


def _finalizing(visit: Visit, stage: Stage, record: StageStatus, finalize: Object) -> Seen:
    state, facts = work_state(finalize), visit.observed.pods.get(finalize["metadata"]["name"])
    if is_leaving(finalize):
        return _leaving(visit, stage, record, [finalize])
    if state.phase not in ("Succeeded", "Failed"):
        assert stage.finalize is not None
        seen = _active(visit, stage, stage.finalize, record, finalize)
        if _is_stuck(seen) and is_corrected(visit, finalize):
            visit.actions.append(Delete(ref=Ref.of(finalize)))
        return seen
    if facts is None:
        visit.wake_in(1.0)
        return _running(visit, stage, record)
    if state.phase == "Failed":
        return _failed(visit, stage, record, judge_failure(state, facts))
    result = _result(facts)
    if result is None and any(e.exit_code == 0 for e in facts.ends):
        return _failed(visit, stage, record, unreadable(facts))
    if result is None:
        # Its pod is gone with the message: it is idempotent, so it is simply asked again.
        visit.actions.append(Delete(ref=Ref.of(finalize)))
        visit.wake_in(visit.config.start_seconds)
        return _running(visit, stage, record, note="asking the finishing task again: its message is lost")
    if result.missing:
        failure = _incomplete(visit, stage, result)
        if failure is None:  # nobody has looked at the workers' pods yet
            visit.wake_in(1.0)
            return _running(visit, stage, record)
        return _failed(visit, stage, record, failure)
    visit.remember(record, result=result, last_failure=None)
    visit.say(EventReason.STAGE_DONE, f"step {stage.step} is done: {result.uri}")
    return Seen(stage=StageObservation(attempts=record.attempt), result=result)


def _incomplete(visit: Visit, stage: Stage, result: StageResult) -> Failure | None:
    """The workers ended without finishing: why, by what their pods say; ``None`` where nobody has looked at them."""
    missing = f"{result.missing} micro-shards have no commit yet" if stage.kind != "train" else "no export was written"
    work = _latest(visit, stage, TASK_WORK)
    if work is None or work_state(work).phase != "Failed":
        return Failure(reason=Reason.WORKER_FAILED, message=missing)
    facts = visit.observed.pods.get(work["metadata"]["name"])
    if facts is None:
        return None
    failure = judge_failure(work_state(work), facts)
    return replace(failure, message=f"{missing}: {failure.message}", permanent=False)


def _result(facts: PodFacts) -> StageResult | None:
    for end in facts.ends:
        if end.exit_code == 0 and end.message is not None:
            try:
                return StageResult.model_validate(end.message)
            except ValidationError:
                continue
    return None


def _failed(visit: Visit, stage: Stage, record: StageStatus, failure: Failure, facts: PodFacts | None = None) -> Seen:
    """Write the failure down; the next visit acts on it."""
    reached = _reached(visit, facts) if stage.kind == "train" else None
    got_further = reached is not None and reached > (record.done or 0)
    if failure.presumed and record.done is not None and not got_further:
        message = f"no step was made since the last interruption: {failure.message}"
        failure = Failure(reason=Reason.WORKER_FAILED, message=message)
    failures = record.failures + failure.counted
    record = visit.remember(
        record, failed_attempt=record.attempt, failures=failures, last_failure=failure.message[:2000],
        last_failure_time=rfc3339(visit.now),
        interruptions=0 if failure.counted else 1 if got_further else record.interruptions + 1,
        done=None if reached is None else max(record.done or 0, reached),
    )  # fmt: skip
    limit = visit.resource.spec.backoff_limit
    observation = StageObservation(attempts=record.attempt, error=failure.message, is_config=failure.permanent)
    if failure.permanent:
        message = f"step {stage.step}: {failure.message}; correct it in a new object: committed work is kept"
        return Seen(
            stage=observation, active=False, problem=Problem(type="Failed", reason=failure.reason, message=message)
        )
    if failures > limit:
        times = f"{failures} times" if failures > 1 else "once"
        message = f"step {stage.step} failed {times}, backoffLimit is {limit}; the last time: {failure.message}"
        return Seen(
            stage=observation, active=False, problem=Problem(type="Failed", reason=Reason.BACKOFF, message=message)
        )
    if stage.kind == "train":
        note_restart(visit, record.attempt + 1, failure.message, _told(facts))
    counted = f"failure {failures} of {limit} allowed" if failure.counted else "not counted"
    visit.say(
        failure.reason, f"step {stage.step}, attempt {record.attempt}: {failure.message} ({counted})", warning=True
    )
    visit.wake_in(0.1)
    return _running(visit, stage, record, reason=failure.reason)


def _reached(visit: Visit, facts: PodFacts | None) -> int:
    """The step that an attempt of a training came to: what its pods left, or what they told last."""
    return max(_told(facts) or 0, getattr(visit.resource.status, "step", None) or 0)


def _told(facts: PodFacts | None) -> int | None:
    """The step that the pods of this attempt left, or told last; ``None`` where they told none."""
    told = [(e.message or {}).get("done") for e in (facts.ends if facts is not None else ())]
    figures = facts.figures if facts is not None else None
    told += [figures["done"] if figures and figures.get("total") else None]
    return max((n for n in told if isinstance(n, int)), default=None)


def _next_attempt(visit: Visit, stage: Stage, record: StageStatus, left: list[Object]) -> Seen:
    """Start an attempt once everything of the last one is gone and its wait is over (rule R11)."""
    if left:
        visit.actions += [Delete(ref=Ref.of(c)) for c in left if not is_leaving(c)]
        return _leaving(visit, stage, record, left)
    if record.last_failure_time is not None and record.failed_attempt >= record.attempt > 0:
        wait = visit.config.retry_wait(record.failures, record.interruptions)
        wait -= seconds_since(visit.now, record.last_failure_time)
        if wait > 0:
            visit.wake_in(wait)
            return _running(visit, stage, record)
    return _start(visit, stage, record)


def _leaving(visit: Visit, stage: Stage, record: StageStatus, left: list[Object]) -> Seen:
    """Wait until an attempt is gone; say so where its pods do not leave."""
    visit.wake_in(visit.config.start_seconds)
    note = None if record.last_failure is not None else "waiting until the last attempt is gone"
    seen = _running(visit, stage, record, note=note)
    return replace(seen, problem=next((p for c in left if (p := stays(visit, c)) is not None), None))


def _start(visit: Visit, stage: Stage, record: StageStatus) -> Seen:
    """Create the workers of the next attempt, after a live read that the last attempt is gone."""
    last, attempt = record.attempt, record.attempt + 1
    if stage.work is None:
        return _create_finalize(visit, stage, visit.remember(record, attempt=attempt))
    # A cache that is far behind knows neither of later attempts nor of their children.
    visit.actions.append(ConfirmFresh())
    if last > 0 and stage.kind == "train":
        note_start(visit, attempt)
    if last > 0:
        before = render_task(stage, stage.work, last, visit.context)
        visit.actions.append(ConfirmAbsent(ref=Ref.of(before)))
        visit.restarts += 1
    _create(visit, stage, stage.work, attempt)
    record = visit.remember(record, attempt=attempt)
    if visit.start_time is None:
        visit.start_time = rfc3339(visit.now)
    visit.say(EventReason.STAGE_STARTED, f"step {stage.step}: attempt {attempt}, {stage.replicas} worker(s)")
    visit.wake_in(visit.config.start_seconds)
    return _running(visit, stage, record)


def _create_finalize(visit: Visit, stage: Stage, record: StageStatus) -> Seen:
    assert stage.finalize is not None
    visit.actions.append(ConfirmFresh())
    _create(visit, stage, stage.finalize, max(record.attempt, 1))
    record = visit.remember(record, attempt=max(record.attempt, 1))
    if visit.start_time is None:
        visit.start_time = rfc3339(visit.now)
    visit.wake_in(visit.config.start_seconds)
    return _running(visit, stage, record)


def _create(visit: Visit, stage: Stage, task: Task, attempt: int) -> None:
    child = marked(visit, render_task(stage, task, attempt, visit.context))
    for obj in (render_runspec(task, visit.context), child):
        visit.actions.append(Create(object=obj, owner_uid=visit.uid))


def _running(
    visit: Visit, stage: Stage, record: StageStatus, *, note: str | None = None, reason: Reason | None = None
) -> Seen:
    if note is None and record.last_failure is not None:
        note = f"attempt {record.failed_attempt} failed: {record.last_failure}"
    if reason is None:
        waits = record.failed_attempt >= record.attempt > 0 and record.last_failure_time is not None
        reason = _last_reason(visit) if waits else Reason.RUNNING
    return Seen(stage=StageObservation(running=True, attempts=record.attempt, note=note, reason=reason))


def _last_reason(visit: Visit) -> Reason:
    """Why the last attempt failed, as the condition Running says since."""
    conditions = visit.resource.status.conditions if visit.resource.status is not None else ()
    said = next((c.reason for c in conditions if c.type == "Running"), "")
    kept = (Reason.DISRUPTED, Reason.OUT_OF_MEMORY, Reason.POD_START)
    return Reason(said) if said in kept else Reason.WORKER_FAILED


def _latest(visit: Visit, stage: Stage, task: str) -> Object | None:
    """The child of the highest attempt."""
    found = [c for c in visit.children_of(stage, LABEL_STEP) if c["metadata"]["labels"].get(LABEL_TASK) == task]
    return max(found, key=_attempt, default=None)


def _attempt(child: Object) -> int:
    return int(child["metadata"]["labels"].get(LABEL_ATTEMPT, 0))


def _is_outdated(child: Object, stage: Stage, record: StageStatus) -> bool:
    """Whether a child works for another key than the stage has now: its spec was edited."""
    key: Any = child["metadata"].get("annotations", {}).get(ANNOTATION_KEY)
    return key != stage.key and _attempt(child) <= record.attempt
