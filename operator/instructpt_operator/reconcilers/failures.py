"""What a failure means: its reason, what to do, and whether a retry is worth it. Pure text and tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from instructpt.api.reasons import Reason
from instructpt.cluster.launchers.base import WorkState
from instructpt_operator.observed import PodEnd, PodFacts, PodProblem

EXIT_CANNOT_WORK, EXIT_CONFIG, EXIT_PREEMPTED = 42, 43, 75

_IMAGE = ("ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError")


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why an attempt failed.

    Attributes:
        counted: Whether it spends one of ``backoffLimit``; an interruption that was nobody's fault does not.
        permanent: Whether a retry cannot help.
    """

    reason: Reason
    message: str
    counted: bool = True
    permanent: bool = False


def judge_failure(state: WorkState, facts: PodFacts | None) -> Failure:
    """Why a child failed, from what its pods left behind."""
    ends = [e for e in (facts.ends if facts else ()) if e.exit_code != 0]
    wrong = next((e for e in ends if e.exit_code == EXIT_CONFIG), None)
    if wrong is not None:
        said, type_ = _said(wrong), _error(wrong).get("type", "")
        reason = Reason.CREDENTIALS if "Credentials" in type_ else Reason.INVALID_SPEC
        return Failure(reason=reason, message=f"{said} (pod {wrong.pod})", permanent=True)
    if facts is not None and _was_interrupted(ends, facts):
        pods = ", ".join(e.pod for e in ends if e.disrupted or e.exit_code == EXIT_PREEMPTED) or ", ".join(
            facts.recreated
        )
        return Failure(reason=Reason.DISRUPTED, message=f"interrupted from outside: pod {pods}", counted=False)
    killed = next((e for e in ends if e.reason == "OOMKilled"), None)
    if killed is not None:
        message = f"pod {killed.pod} ran out of memory; raise resources.memory or lower the batch"
        return Failure(reason=Reason.OUT_OF_MEMORY, message=message)
    if ends:
        # The pod that says most: a peer that only lost its partner says less than the one that failed first.
        end = next((e for e in ends if _error(e)), ends[0])
        return Failure(reason=Reason.WORKER_FAILED, message=f"{_said(end)} (pod {end.pod})")
    said = ": ".join(x for x in (state.reason, state.message) if x) or "its pods are gone without a message"
    return Failure(reason=Reason.WORKER_FAILED, message=said)


def _was_interrupted(ends: Iterable[PodEnd], facts: PodFacts) -> bool:
    """Whether a pod was taken away; peers of it may then have failed with any code."""
    return bool(facts.recreated) or any(e.disrupted or e.exit_code == EXIT_PREEMPTED for e in ends)


def _error(end: PodEnd) -> Mapping[str, Any]:
    error = (end.message or {}).get("error")
    return error if isinstance(error, Mapping) else {}


def _said(end: PodEnd) -> str:
    said = _error(end).get("message")
    if said:
        return str(said)[:1500]
    how = f" ({end.reason})" if end.reason else ""
    return f"the worker ended with exit code {end.exit_code}{how} and left no message"


def judge_problem(problem: PodProblem) -> tuple[Reason, str]:
    """Reason and advice for a pod that does not start."""
    said = problem.message.strip()
    if problem.reason in _IMAGE:
        fix = "set podTemplate.image or the chart's images to one that the node can pull, or add imagePullSecrets"
        return Reason.IMAGE_PULL, f"pod {problem.pod}: {problem.reason}: {said}; {fix}"
    if "secret" in said.lower() and "not found" in said.lower():
        return Reason.SECRET_MISSING, f"pod {problem.pod}: {said}; create the Secret in this namespace"
    if problem.reason == "Unschedulable":
        fix = "add nodes, ask for less in resources, or change nodeSelector and tolerations"
        return Reason.UNSCHEDULABLE, f"pod {problem.pod}: {said}; {fix}"
    if problem.reason == "FailedCreate":
        quota = "quota" in said.lower()
        fix = "raise the quota or lower parallelism" if quota else "read the message: the API server refused the pod"
        return Reason.QUOTA if quota else Reason.POD_START, f"{said}; {fix}"
    return Reason.POD_START, f"pod {problem.pod}: {problem.reason}: {said}"
