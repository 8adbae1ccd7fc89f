"""What a failure means: its reason, what to do, and whether a retry is worth it. Pure text and tables."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from instructpt.api.reasons import Reason
from instructpt.cluster.launchers.base import WorkState
from instructpt_operator.observed import WORKER_CONTAINERS, PodEnd, PodFacts, PodProblem

EXIT_CONFIG, EXIT_PREEMPTED = 43, 75
PEER_LOST = "PeerLostError"
"""What a rank says when another one is gone."""

_IMAGE = ("ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError")
INIT_CONTAINER = "init-pytorch"
_FOREIGN = {
    INIT_CONTAINER: "the training operator adds it: give its --pytorch-init-container-image one that the node can pull"
}
"""What to do about a container that is none of ours."""
_BETWEEN_TRIES = re.compile(r'^Back-off pulling image "[^"]*": (ErrImagePull: )?')


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why an attempt failed.

    Attributes:
        counted: Whether it spends one of ``backoffLimit``; an interruption that was nobody's fault does not.
        permanent: Whether a retry cannot help.
        presumed: Whether an interruption is only inferred: pods lost one another and none says why. The first is taken
            for one; a training that makes no step in between and loses them again has a fault of its own.
    """

    reason: Reason
    message: str
    counted: bool = True
    permanent: bool = False
    presumed: bool = False


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
    vain = next((e for e in ends if e.gave_up), None)
    if vain is not None and facts is not None and all(_is_bystander(e) for e in ends):
        return _waited_in_vain(vain, facts)
    interruption = _interruption(facts, ends, expected)
    if interruption is not None:
        return interruption
    ends = [e for e in ends if not _is_bystander(e)] or ends
    killed = next((e for e in ends if e.reason == "OOMKilled"), None)
    if killed is not None:
        raise_ = "raise podTemplate.resources.limits.memory, or resources.memory of the stage, or lower the batch"
        message = f"pod {killed.pod} ran out of memory; {raise_}"
        return Failure(reason=Reason.OUT_OF_MEMORY, message=message)
    if ends:
        end = next((e for e in ends if _error(e)), ends[0])
        return Failure(reason=Reason.WORKER_FAILED, message=f"{_said(end)} (pod {end.pod})")
    said = ": ".join(x for x in (state.reason, state.message) if x) or "its pods are gone without a message"
    return Failure(reason=Reason.WORKER_FAILED, message=said)


def _interruption(facts: PodFacts | None, ends: list[PodEnd], expected: int) -> Failure | None:
    """Pods that were taken away, or told to leave, and peers that lost them; ``None`` where one failed by itself.

    A pod that is gone proves nothing of a gang: once one has failed the training operator removes those that still
    run, and with them what they would have said.
    """
    if any(not _is_bystander(e) for e in ends):
        return None
    told, lost = ([e for e in ends if _is_interrupted(e) is yes] for yes in (True, False))
    recreated = facts.recreated if facts is not None and expected else ()
    gone = max(0, expected - facts.listed) if facts is not None and facts.listed is not None else 0
    taken = [*(e.pod for e in told), *recreated, *([f"({gone} of {expected} gone)"] if gone else [])]
    if not taken:
        return None
    message = f"interrupted from outside: pod {', '.join(dict.fromkeys(taken))}"
    if lost:
        message += f"; {_said(lost[0])} (pod {lost[0].pod})"
    proved = any(e.disrupted for e in ends) or bool(recreated) or not (lost or gone)
    return Failure(reason=Reason.DISRUPTED, message=message, counted=False, presumed=not proved)


def _waited_in_vain(end: PodEnd, facts: PodFacts) -> Failure:
    """An init container gave up, as that of the training operator does while the master does not start.

    It is not the cause: what kept the master from starting was told all along, and is no failure of the worker's. Where
    the master did run, it could not be found, which the next attempt may cure once.
    """
    message = f"pod {end.pod}: its init container {end.gave_up} gave up waiting"
    if not facts.started:
        kept = judge_problem(facts.problems[0])[1] if facts.problems else "no pod of this attempt has started"
        return Failure(reason=Reason.POD_START, message=f"{message}; {kept}", counted=False)
    fix = "see whether the cluster's DNS resolves the name of the master's pod"
    return Failure(
        reason=Reason.POD_START, message=f"{message}, though others started; {fix}", counted=False, presumed=True
    )


def taken_away(pods: Sequence[str]) -> Failure:
    """Pods of a gang that runs were replaced: those cannot join, and the others wait for them in vain."""
    message = f"interrupted from outside: pod {', '.join(pods)} was taken away, and what took its place cannot join"
    return Failure(reason=Reason.DISRUPTED, message=message, counted=False)


def unreadable(facts: PodFacts) -> Failure:
    """A finishing task that ended well, but whose message is no result: it is of another version than the operator."""
    pod = next((e.pod for e in facts.ends if e.exit_code == 0), "")
    message = f"pod {pod} finished, but left no result that can be read; bring images and operator to one version"
    return Failure(reason=Reason.WORKER_FAILED, message=message)


def _is_bystander(end: PodEnd) -> bool:
    """Whether it tells nothing of the cause: it was interrupted, or lost a peer."""
    return _is_interrupted(end) or _error(end).get("type") == PEER_LOST


def _permanent(end: PodEnd) -> Reason:
    """What a worker meant that said that no retry can help."""
    type_ = str(_error(end).get("type", ""))
    if "Credentials" in type_:
        return Reason.CREDENTIALS
    return Reason.CORPUS_REFUSED if type_ == "CorpusError" else Reason.INVALID_SPEC


def mostly_failed(facts: PodFacts) -> bool:
    """Whether no more pods run than have failed: one that is tried again has not shown yet that it gets further."""
    failed = sum(e.exit_code != 0 and not _is_interrupted(e) for e in facts.ends)
    return failed > 0 and facts.running <= failed


def _is_interrupted(end: PodEnd) -> bool:
    """Whether it left because it was told to, or was taken away."""
    return end.disrupted or end.told_to_leave or end.exit_code in (EXIT_PREEMPTED, None)


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
    if problem.container not in ("", *WORKER_CONTAINERS):
        fix = _FOREIGN.get(problem.container, "correct what adds it to the pod")
        return Reason.POD_START, f"pod {problem.pod}, container {problem.container}: {said or problem.reason}; {fix}"
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
    if problem.reason in ("FailedCreate", "FailedCreatePod"):
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
    if INIT_CONTAINER in low:
        fix = "give the training operator a template of its init container that this namespace admits"
        return Reason.POD_START, f"{fix}: this goes on by itself"
    return Reason.POD_START, "correct podTemplate, or what refuses the pod: this goes on by itself"
