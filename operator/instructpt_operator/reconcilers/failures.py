"""What a failure means: its reason, what to do, and whether a retry is worth it. Pure text and tables."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from instructpt.api.reasons import Reason
from instructpt.cluster.launchers.base import WorkState
from instructpt_operator.observed import PodEnd, PodFacts, PodProblem

EXIT_CONFIG, EXIT_PREEMPTED = 43, 75
PEER_LOST = "PeerLostError"
"""What a rank says when another one is gone."""

_IMAGE = ("ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError")
_BETWEEN_TRIES = re.compile(r'^Back-off pulling image "[^"]*": (ErrImagePull: )?')


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


def judge_failure(state: WorkState, facts: PodFacts | None, *, expected: int = 0) -> Failure:
    """Why a child failed, from what its pods left behind.

    Args:
        state: What the child says of itself.
        facts: What its pods say, if anybody looked.
        expected: Pods that must be there, of a launcher: one that is missing was taken away (protocols.md 7).
    """
    ends = [e for e in (facts.ends if facts else ()) if e.exit_code != 0]
    wrong = next((e for e in ends if e.exit_code == EXIT_CONFIG), None)
    if wrong is not None:
        return Failure(reason=_permanent(wrong), message=f"{_said(wrong)} (pod {wrong.pod})", permanent=True)
    # A pod that lost its peer tells nothing of the cause, and one that was taken away is nobody's fault.
    causes = [e for e in ends if not _is_interrupted(e) and _error(e).get("type") != PEER_LOST]
    taken = [e.pod for e in ends if _is_interrupted(e)] + list(facts.recreated if facts and expected else ())
    if facts is not None and facts.listed is not None and facts.listed < expected:
        taken.append(f"({expected - facts.listed} of {expected} gone)")
    if taken and not causes:
        message = f"interrupted from outside: pod {', '.join(dict.fromkeys(taken))}"
        return Failure(reason=Reason.DISRUPTED, message=message, counted=False)
    ends = causes or ends
    killed = next((e for e in ends if e.reason == "OOMKilled"), None)
    if killed is not None:
        message = f"pod {killed.pod} ran out of memory; raise resources.memory or lower the batch"
        return Failure(reason=Reason.OUT_OF_MEMORY, message=message)
    if ends:
        end = next((e for e in ends if _error(e)), ends[0])
        return Failure(reason=Reason.WORKER_FAILED, message=f"{_said(end)} (pod {end.pod})")
    said = ": ".join(x for x in (state.reason, state.message) if x) or "its pods are gone without a message"
    return Failure(reason=Reason.WORKER_FAILED, message=said)


def _permanent(end: PodEnd) -> Reason:
    """What a worker meant that said that no retry can help."""
    type_ = str(_error(end).get("type", ""))
    if "Credentials" in type_:
        return Reason.CREDENTIALS
    return Reason.CORPUS_REFUSED if type_ == "CorpusError" else Reason.INVALID_SPEC


def mostly_failed(facts: PodFacts) -> bool:
    """Whether no more pods run than have failed: one that is tried again has not shown yet that it gets further."""
    failed = sum(e.exit_code != 0 for e in facts.ends)
    return failed > 0 and facts.running <= failed


def _is_interrupted(end: PodEnd) -> bool:
    """Whether it left because it was told to, or was taken away."""
    return end.disrupted or end.exit_code in (EXIT_PREEMPTED, None)


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
        # Between two tries the kubelet wraps what it said at the last one: one message for both.
        said = _BETWEEN_TRIES.sub("", said) or problem.reason
        fix = "set podTemplate.image or the chart's images to one that the node can pull, or add imagePullSecrets"
        return Reason.IMAGE_PULL, f"pod {problem.pod}: {said}; {fix}"
    needed = _needed(said)
    if needed is not None:
        return Reason.SECRET_MISSING, f"pod {problem.pod}: {said}; {needed} in this namespace: this goes on by itself"
    if problem.reason == "Unschedulable":
        fix = "add nodes, ask for less in resources, or change podTemplate.nodeSelector and tolerations"
        return Reason.UNSCHEDULABLE, f"pod {problem.pod}: {said}; {fix}"
    if problem.reason == "FailedCreate":
        reason, fix = _refused(said)
        return reason, f"{said}; {fix}"
    return Reason.POD_START, f"pod {problem.pod}: {problem.reason}: {said}; correct what it names"


def _needed(said: str) -> str | None:
    """What to do where a pod lacks a Secret or ConfigMap, or a key of one."""
    low = said.lower()
    for word, kind in (("secret", "Secret"), ("configmap", "ConfigMap")):
        if word in low and "not found" in low:
            return f"create the {kind}"
        if word in low and ("couldn't find key" in low or "non-existent" in low):
            return f"put the key into the {kind}"
    return None


def _refused(said: str) -> tuple[Reason, str]:
    """Why the API server takes no pod of a Job."""
    low = said.lower()
    if "quota" in low:
        return Reason.QUOTA, "raise the quota or lower parallelism: this goes on by itself"
    if "service account" in low or "serviceaccount" in low:
        fix = "create the service account or correct podTemplate.serviceAccountName: this goes on by itself"
        return Reason.POD_START, fix
    return Reason.POD_START, "correct podTemplate, or what refuses the pod: this goes on by itself"
