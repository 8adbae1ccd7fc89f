"""Pods and their events as JSON -> what a reconciler wants to know. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from instructpt_operator.actions import Object
from instructpt_operator.observed import WORKER_CONTAINERS, PodEnd, PodFacts, PodProblem

_HARMLESS_WAITING = ("ContainerCreating", "PodInitializing")
_NEVER_RAN = ("StartError", "ContainerCannotRun")
LEAVING_SECONDS, STRANDED_SECONDS = 60.0, 15.0
"""After which a pod on its way out is told of: one that still runs, and one that has ended."""
_TELLING_EVENTS = ("FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox", "FailedCreate", "FailedCreatePod")


def pod_facts(
    pods: Sequence[Object],
    events: Iterable[Object] = (),
    figures: Mapping[str, Any] | None = None,
    *,
    now: datetime | None = None,
    is_sample: bool = False,
) -> PodFacts:
    """What the pods of one child tell.

    Args:
        pods: As listed; those being deleted count neither as running nor as a problem.
        events: Events about the child and its pods, where pods are missing or do not start without saying why.
        figures: Merged progress of those that answered.
        now: Tells which pods outstay the time that they have to leave; none is told of without.
        is_sample: Whether there may be more pods than were listed.
    """
    living = [p for p in pods if "deletionTimestamp" not in p["metadata"]]
    problems = sorted((p for pod in living if (p := problem_of(pod)) is not None), key=_is_foreign)
    if not problems:
        # The newest first: what was wrong before may be mended, and its event stays for an hour.
        newest = sorted(events, key=_said_at, reverse=True)
        problems = [p for e in newest if (p := _event_problem(e)) is not None]
    return PodFacts(
        listed=None if is_sample else len(pods),
        running=sum(is_running(p) for p in living),
        problems=tuple(problems),
        started=any(_started(p) is not None for p in pods),
        ends=tuple(end for p in pods if (end := end_of(p)) is not None),
        recreated=recreated(pods),
        leaving=tuple(_where(p) for p in pods if not _has_ended(p) and _overdue(p, now, LEAVING_SECONDS)),
        stranded=any(
            _has_ended(p) and p["metadata"].get("finalizers") and _overdue(p, now, STRANDED_SECONDS) for p in pods
        ),
        figures=figures,
    )


def _has_ended(pod: Object) -> bool:
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def _overdue(pod: Object, now: datetime | None, seconds: float) -> bool:
    """Whether a pod that is being deleted is still there so long after its grace period, which its timestamp has in."""
    until = pod["metadata"].get("deletionTimestamp")
    return until is not None and now is not None and (now - _time(until)).total_seconds() > seconds


def _where(pod: Object) -> str:
    name, node = str(pod["metadata"]["name"]), pod.get("spec", {}).get("nodeName")
    return f"{name} on node {node}" if node else name


def is_running(pod: Object) -> bool:
    """Whether its worker runs now."""
    return pod.get("status", {}).get("phase") == "Running" and any(
        "running" in s.get("state", {}) for s in pod["status"].get("containerStatuses", ())
    )


def is_stuck(pod: Object) -> bool:
    """Whether it waits without saying why: then its events tell. One whose init container runs is on its way."""
    status = pod.get("status", {})
    return (
        status.get("phase", "Pending") == "Pending"
        and "deletionTimestamp" not in pod["metadata"]
        and problem_of(pod) is None
        and not any("running" in s.get("state", {}) for s in status.get("initContainerStatuses", ()))
    )


def problem_of(pod: Object) -> PodProblem | None:
    """Why a pod does not start, if it says so."""
    name, status = pod["metadata"]["name"], pod.get("status", {})
    if status.get("phase", "Pending") not in ("Pending", "Running"):
        return None
    for condition in status.get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            reason = condition.get("reason", "Unschedulable")
            if reason == "SchedulingGated":
                continue
            return PodProblem(pod=name, reason=reason, message=condition.get("message", ""))
    for container in (*status.get("containerStatuses", ()), *status.get("initContainerStatuses", ())):
        waiting = container.get("state", {}).get("waiting")
        if waiting and waiting.get("reason") and waiting["reason"] not in _HARMLESS_WAITING:
            return PodProblem(
                pod=name,
                reason=waiting["reason"],
                message=waiting.get("message", ""),
                container=container.get("name", ""),
            )
    return None


def _is_foreign(problem: PodProblem) -> bool:
    """Whether it is of a container that others add to our pods, as the training operator does."""
    return problem.container not in ("", *WORKER_CONTAINERS)


def end_of(pod: Object) -> PodEnd | None:
    """How its worker ended, if it has."""
    status = pod.get("status", {})
    if status.get("phase") not in ("Succeeded", "Failed"):
        return None
    statuses = status.get("containerStatuses", ())
    own = [s for s in statuses if s.get("name") in WORKER_CONTAINERS] or statuses  # a sidecar says nothing of the work
    ended = [s["state"]["terminated"] for s in own if "terminated" in s.get("state", {})]
    last = ended[0] if ended else {}
    return PodEnd(
        pod=pod["metadata"]["name"],
        exit_code=last.get("exitCode"),
        message=_of_runtime(last) or _message(last.get("message", "")),
        disrupted=any(c["type"] == "DisruptionTarget" and c["status"] == "True" for c in status.get("conditions", ())),
        reason=last.get("reason") or status.get("reason", ""),
        told_to_leave=_was_told_to_leave(pod, last),
        gave_up="" if ended else _failed_init(status),
    )


def _was_told_to_leave(pod: Object, last: Mapping[str, Any]) -> bool:
    """Whether the pod was being deleted when its worker ended; what had ended before ended by itself."""
    meta = pod["metadata"]
    if meta.get("deletionTimestamp") is None:
        return False
    asked = _time(meta["deletionTimestamp"]) - timedelta(seconds=meta.get("deletionGracePeriodSeconds") or 0)
    return not last.get("finishedAt") or _time(last["finishedAt"]) >= asked


def _failed_init(status: Mapping[str, Any]) -> str:
    """Name of the init container that ended with an error."""
    found = (
        str(s.get("name", ""))
        for s in status.get("initContainerStatuses", ())
        if s.get("state", {}).get("terminated", {}).get("exitCode")
    )
    return next(found, "")


def recreated(pods: Sequence[Object]) -> tuple[str, ...]:
    """Pods that were created after a peer's worker had started: somebody took the first one away."""
    started = [t for p in pods if (t := _started(p)) is not None]
    if len(pods) < 2 or not started:
        return ()
    first = min(started)
    return tuple(p["metadata"]["name"] for p in pods if _time(p["metadata"]["creationTimestamp"]) > first)


def _started(pod: Object) -> datetime | None:
    for container in pod.get("status", {}).get("containerStatuses", ()):
        for state in container.get("state", {}).values():
            if state.get("startedAt"):
                return _time(state["startedAt"])
    return None


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def _message(text: str) -> Mapping[str, Any] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _of_runtime(last: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What the container runtime says of a container that it could not start: no JSON, and no worker wrote it."""
    if last.get("reason") not in _NEVER_RAN or not last.get("message"):
        return None
    return {"error": {"type": last["reason"], "message": f"the container did not start: {last['message']}"}}


def _said_at(event: Object) -> str:
    """When an event was seen last; all times are RFC 3339 in UTC, so their text has their order to the second."""
    series = event.get("series") or {}
    said = series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime")
    return str(said or event.get("metadata", {}).get("creationTimestamp") or "")[:19]


def _event_problem(event: Object) -> PodProblem | None:
    if event.get("reason") not in _TELLING_EVENTS:
        return None
    about = event.get("involvedObject", {})
    return PodProblem(pod=about.get("name", ""), reason=event["reason"], message=event.get("message", ""))
