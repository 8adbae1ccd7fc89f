"""What a failure is called, and what becomes of a child that cannot start."""

from __future__ import annotations

import operators
import pytest
from simulation import Cluster, Ends, Key, Stuck

from instructpt.api.reasons import Reason
from instructpt.cluster.launchers.base import WorkState
from instructpt_operator.observed import PodEnd, PodFacts, PodProblem
from instructpt_operator.pods import end_of
from instructpt_operator.reconcilers.failures import judge_failure, judge_problem, mostly_failed

PULL = Stuck("ErrImagePull", 'failed to pull image "nowhere/x"')
FAILED = WorkState(phase="Failed")


def stuck_at_first() -> tuple[Cluster, Key]:
    """A Corpus whose first attempt does not start, and whose later ones end well."""
    cluster = Cluster(script=lambda step, task, attempt: PULL if attempt == 1 else Ends())
    key = cluster.apply("Corpus", "c", operators.corpus("c")["spec"])
    cluster.settle(rounds=4)
    assert cluster.condition(key, "Blocked")["reason"] == "ImageCannotBePulled"
    return cluster, key


def test_a_corrected_pod_template_replaces_the_attempt_that_is_stuck() -> None:
    cluster, key = stuck_at_first()
    cluster.edit(key, podTemplate={"image": "here/x"})
    cluster.settle()
    assert cluster.is_true(key, "Complete")
    stage = cluster.status(key)["stages"][0]
    assert (stage["attempt"], stage["failures"]) == (2, 0)
    assert [reason for _, reason, _ in cluster.events].count("Corrected") == 1


def test_an_attempt_that_is_stuck_waits_as_long_as_nothing_is_corrected() -> None:
    cluster, key = stuck_at_first()
    cluster.edit(key, backoffLimit=7)
    cluster.settle()
    assert cluster.is_true(key, "Blocked")
    assert cluster.status(key)["stages"][0]["attempt"] == 1
    assert set(cluster.created.values()) == {1}


def end(code: int | None, *, type_: str = "", reason: str = "Error") -> PodEnd:
    message = {"error": {"type": type_, "message": "no"}} if type_ else None
    return PodEnd(pod="p", exit_code=code, message=message, reason=reason)


@pytest.mark.parametrize(
    ("type_", "reason"),
    [
        ("CredentialsError", Reason.CREDENTIALS),
        ("CorpusError", Reason.CORPUS_REFUSED),
        ("ConfigError", Reason.INVALID_SPEC),
        ("PlanError", Reason.INVALID_SPEC),
    ],
)
def test_what_no_retry_can_help_is_told_apart(type_: str, reason: Reason) -> None:
    failure = judge_failure(FAILED, PodFacts(ends=(end(43, type_=type_),)))
    assert (failure.reason, failure.permanent) == (reason, True)


def test_what_the_runtime_says_of_a_container_that_never_ran_is_kept() -> None:
    terminated = {"exitCode": 128, "reason": "StartError", "message": 'exec: "instructpt": not found'}
    status = {"phase": "Failed", "containerStatuses": [{"state": {"terminated": terminated}}]}
    found = end_of({"metadata": {"name": "p"}, "status": status})
    assert found is not None
    failure = judge_failure(FAILED, PodFacts(ends=(found,)))
    assert 'the container did not start: exec: "instructpt": not found' in failure.message


@pytest.mark.parametrize(
    ("running", "codes", "expected"),
    [(0, (), False), (0, (0,), False), (0, (1,), True), (1, (1,), True), (2, (1,), False), (1, (1, 0), True)],
)
def test_a_failure_is_told_until_more_run_than_have_failed(
    running: int, codes: tuple[int, ...], expected: bool
) -> None:
    assert mostly_failed(PodFacts(running=running, ends=tuple(end(code) for code in codes))) is expected


@pytest.mark.parametrize(
    ("said", "reason", "fix"),
    [
        ('secret "x" not found', Reason.SECRET_MISSING, "create the Secret"),
        ('configmap "x" not found', Reason.SECRET_MISSING, "create the ConfigMap"),
        ("couldn't find key k in Secret ns/x", Reason.SECRET_MISSING, "put the key into the Secret"),
        ("references non-existent secret key: k", Reason.SECRET_MISSING, "put the key into the Secret"),
        ("something else", Reason.POD_START, "correct what it names"),
    ],
)
def test_what_a_pod_lacks_is_named(said: str, reason: Reason, fix: str) -> None:
    found, message = judge_problem(PodProblem(pod="p", reason="CreateContainerConfigError", message=said))
    assert found == reason
    assert said in message
    assert fix in message


def test_an_image_has_one_message_whether_it_is_pulled_or_waited_for() -> None:
    cause = 'failed to pull image "x": no such host'
    waits = PodProblem(pod="p", reason="ImagePullBackOff", message=f'Back-off pulling image "x": ErrImagePull: {cause}')
    pulls = PodProblem(pod="p", reason="ErrImagePull", message=cause)
    assert judge_problem(waits) == judge_problem(pulls)
