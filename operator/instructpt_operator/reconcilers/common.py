"""What all kinds share: ends, suspension, deadlines, conflicts of names."""

from __future__ import annotations

from instructpt.api.reasons import Reason
from instructpt.cluster.meta import step_label
from instructpt.cluster.observe import work_state
from instructpt.plan.model import Plan
from instructpt.plan.naming import LABEL_ATTEMPT, LABEL_STEP, LABEL_TASK
from instructpt.plan.planner import AnyResource
from instructpt.plan.refs import is_true
from instructpt.plan.status import Observation, Problem
from instructpt_operator.actions import Delete, Object, Outcome, Ref
from instructpt_operator.reconcilers.status import write_status
from instructpt_operator.reconcilers.visit import Visit, is_leaving, seconds_since


def compute_children(visit: Visit) -> list[Object]:
    """Jobs and launcher objects; of a pipeline the objects of our kinds are not among them."""
    return [c for c in visit.observed.children.values() if LABEL_TASK in c["metadata"].get("labels", {})]


def after_end(visit: Visit) -> Outcome:
    """An object that has ended: stop what still runs, and remove it when its time is over."""
    for child in compute_children(visit):
        if work_state(child).phase in ("Pending", "Running", "Suspended") and not is_leaving(child):
            visit.actions.append(Delete(ref=Ref.of(child)))
    ttl, status = visit.resource.spec.ttl_seconds_after_finished, visit.resource.status
    if ttl is not None and status is not None and status.completion_time is not None:
        left = ttl - seconds_since(visit.now, status.completion_time)
        if left <= 0:
            visit.actions.append(Delete(ref=own_ref(visit.resource)))
        else:
            visit.wake_in(left)
    generation = visit.resource.metadata.generation
    if status is None or status.observed_generation == generation:
        return visit.outcome(None)
    return visit.outcome(status.model_copy(update={"observed_generation": generation}).to_wire())


def own_ref(resource: AnyResource) -> Ref:
    """Names the object itself."""
    meta = resource.metadata
    return Ref(
        api_version=resource.api_version, kind=resource.kind, namespace=meta.namespace or "default", name=meta.name,
        uid=meta.uid or "",
    )  # fmt: skip


def suspended(visit: Visit, plan: Plan | None, *, busy: bool = False) -> Outcome:
    """``spec.suspend``: end the compute, keep status and outputs; the deadline starts anew on resume.

    Args:
        visit: The visit.
        plan: What would be done, if it is known.
        busy: Whether children of our kinds still stop.
    """
    left = compute_children(visit)
    visit.start_time = None
    if plan is not None and _remember_attempts(visit, plan):
        visit.wake_in(0.1)  # first the status knows of them, then they go: no attempt's name is ever used twice
    else:
        visit.actions += [Delete(ref=Ref.of(c)) for c in left if not is_leaving(c)]
    if left:
        visit.wake_in(visit.config.start_seconds)
    for record in list(visit.memory.values()):
        if record.result is None and record.failed_attempt < record.attempt:
            # The attempt is over, and nobody is to blame: the next one starts at once and counts as no failure.
            visit.remember(record, failed_attempt=record.attempt, last_failure_time=None)
    if (left or busy) and not visit.says(Reason.SUSPENDING) and not is_true(visit.resource, "Suspended"):
        visit.say(Reason.SUSPENDING, "stopping the workers; committed work is kept")
    problem = next((p for c in left if (p := stays(visit, c)) is not None), None)
    return write_status(visit, plan, Observation(stages={}, active=bool(left) or busy, problem=problem))


def namespace_ends(visit: Visit) -> Outcome:
    """Stop everything in a namespace that is being deleted.

    Kubernetes deletes pods first, and a Job that retries per index keeps the finalizer of a failed pod until its
    replacement exists, which a namespace on its way out never gets: only without its Job does the pod go.
    """
    visit.actions += [Delete(ref=Ref.of(c)) for c in compute_children(visit) if not is_leaving(c)]
    message = "the namespace is being deleted: the workers are stopped"
    return write_status(visit, None, blocked(Reason.NAMESPACE_ENDS, message))


def blocked(reason: Reason, message: str) -> Observation:
    """Nothing runs until the user acts."""
    return Observation(stages={}, active=False, problem=Problem(type="Blocked", reason=reason, message=message))


def stays(visit: Visit, child: Object) -> Problem | None:
    """A child on its way out whose pods outstay their grace period: as a rule their node is dead."""
    return _not_leaving(visit, child) if is_leaving(child) else None


def lost(visit: Visit, child: Object, *, is_gang: bool) -> Problem | None:
    """A child that cannot go on: of a gang one pod does not leave, of an Indexed Job none is left but such.

    Nothing takes their place before they are gone, since they may still write.
    """
    facts = visit.observed.pods.get(child["metadata"]["name"])
    return _not_leaving(visit, child) if facts is not None and (is_gang or facts.running == 0) else None


def _not_leaving(visit: Visit, child: Object) -> Problem | None:
    facts = visit.observed.pods.get(child["metadata"]["name"])
    if facts is None or not facts.leaving:
        return None
    message = (
        f"pod {', '.join(facts.leaving[:3])} should have left by now; if its node is gone for good, delete the "
        "node or taint it with node.kubernetes.io/out-of-service=:NoExecute: this goes on by itself"
    )
    return Problem(type="Blocked", reason=Reason.PODS_STAY, message=message)


def _remember_attempts(visit: Visit, plan: Plan) -> bool:
    """Catch up with attempts whose status was never written; True where there were any."""
    found = False
    for stage in plan.stages:
        labels = [c["metadata"].get("labels", {}) for c in visit.children_of(stage, LABEL_STEP)]
        attempt = max((int(each.get(LABEL_ATTEMPT, 0)) for each in labels), default=0)
        if stage.key is not None and attempt > visit.record(stage).attempt:
            visit.catch_up(stage, attempt)
            found = True
    return found


def deadline(visit: Visit) -> Problem | None:
    """``activeDeadlineSeconds`` since the first worker was started, or since the last resume."""
    limit = visit.resource.spec.active_deadline_seconds
    if limit is None or visit.start_time is None:
        return None
    left = limit - seconds_since(visit.now, visit.start_time)
    if left > 0:
        visit.wake_in(left)
        return None
    message = f"spec.activeDeadlineSeconds={limit} is over; raise it in a new object: committed work is kept"
    visit.actions += [Delete(ref=Ref.of(c)) for c in compute_children(visit) if not is_leaving(c)]
    return Problem(type="Failed", reason=Reason.DEADLINE, message=message)


def name_conflict(name: str) -> Problem:
    """A child's name is held by something that is not ours (rule R10)."""
    message = f"{name} exists and belongs to something else; delete or rename it, then this goes on by itself"
    return Problem(type="Blocked", reason=Reason.NAME_CONFLICT, message=message)


def hindrance(visit: Visit) -> Problem | None:
    """What the API server said to the last try to create a child, if it will say so again."""
    observed = visit.observed
    if observed.name_conflict is None and observed.refused is None:
        return None
    visit.wake_in(visit.config.blocked_seconds)
    if observed.name_conflict is not None:
        return name_conflict(observed.name_conflict)
    said = observed.refused or ""
    if "quota" in said.lower():
        message = f"{said}; raise the quota, or ask for less: this goes on by itself"
        return Problem(type="Blocked", reason=Reason.QUOTA, message=message)
    message = f"the API server refuses a child: {said}; correct podTemplate, or what refuses it: this goes on by itself"
    return Problem(type="Blocked", reason=Reason.POD_START, message=message)


def too_few_succeeded(resource: AnyResource, plan: Plan) -> Problem | None:
    """``completionPolicy.minSucceededPercent`` of a synthesis, by documents."""
    policy = getattr(resource.spec, "completion_policy", None)
    result = plan.stages[-1].result if plan.stages else None
    if policy is None or result is None or resource.kind != "SynthesisJob":
        return None
    documents, dead = result.counts.get("documents", 0), result.counts.get("dead_letters", 0)
    if documents == 0 or 100.0 * (documents - dead) / documents >= policy.min_succeeded_percent:
        return None
    message = (
        f"{dead} of {documents} documents are dead letters; completionPolicy.minSucceededPercent is "
        f"{policy.min_succeeded_percent}: read their reasons at {result.uri}, or lower it"
    )
    return Problem(type="Failed", reason=Reason.TOO_FEW_SUCCEEDED, message=message)


def is_settled(raw: Object, child: Object) -> bool:
    """Whether nothing more is to be learnt from a child's pods: its stage has its result, or its failure is counted."""
    labels = child["metadata"].get("labels", {})
    if LABEL_TASK not in labels:
        return True
    if is_leaving(child):
        return False
    for stage in raw.get("status", {}).get("stages", ()):
        if step_label(stage["step"]) == labels.get(LABEL_STEP):
            attempt = int(labels.get(LABEL_ATTEMPT, 0))
            return "result" in stage or stage.get("failedAttempt", 0) >= attempt
    return False
