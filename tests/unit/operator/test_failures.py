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


TAKEN = PodEnd(pod="t-worker-0", exit_code=137, told_to_leave=True, reason="Error")
LOST = PodEnd(pod="t-master-0", exit_code=1, message={"error": {"type": "PeerLostError", "message": "a rank is gone"}})


def test_f8_a_training_pod_that_is_being_deleted_has_not_failed() -> None:
    failure = judge_failure(FAILED, PodFacts(listed=2, ends=(TAKEN, LOST)), expected=2)
    assert (failure.reason, failure.counted, failure.permanent) == (Reason.DISRUPTED, False, False)
    assert "t-worker-0" in failure.message
    assert not mostly_failed(PodFacts(ends=(TAKEN,)))


def test_a_pod_that_fails_is_not_excused_by_peers_that_are_deleted_because_of_it() -> None:
    failure = judge_failure(FAILED, PodFacts(listed=2, ends=(TAKEN, end(1, type_="TrainingError"))), expected=2)
    assert (failure.reason, failure.counted) == (Reason.WORKER_FAILED, True)


GAVE_UP = PodEnd(pod="t-worker-0", exit_code=None, gave_up="init-pytorch")


def test_f9_a_worker_that_waited_in_vain_for_its_master_does_not_hide_why_that_did_not_start() -> None:
    why = PodProblem(pod="t-master-0", reason="ErrImagePull", message="not found", container="pytorch")
    failure = judge_failure(FAILED, PodFacts(listed=1, problems=(why,), ends=(GAVE_UP,)), expected=2)
    assert (failure.reason, failure.counted, failure.presumed) == (Reason.POD_START, False, False)
    assert (
        "pod t-worker-0: its init container init-pytorch gave up waiting; pod t-master-0: not found" in failure.message
    )
    assert "set podTemplate.image" in failure.message


def test_a_worker_that_does_not_find_a_master_that_runs_is_excused_once() -> None:
    facts = PodFacts(listed=2, started=True, ends=(GAVE_UP, LOST))
    failure = judge_failure(FAILED, facts, expected=2)
    assert (failure.counted, failure.presumed) == (False, True)
    assert "DNS" in failure.message


def test_f9_an_image_that_the_training_operator_adds_is_not_the_users() -> None:
    reason, message = judge_problem(
        PodProblem(pod="t-worker-0", reason="ErrImagePull", message="alpine: not found", container="init-pytorch")
    )
    assert reason == Reason.POD_START
    assert "--pytorch-init-container-image" in message
    assert "podTemplate" not in message


def test_f9_a_namespace_that_refuses_the_training_operators_init_container_says_so() -> None:
    said = (
        'pods "t-worker-0" is forbidden: violates PodSecurity "restricted:latest": (container "init-pytorch" must set'
    )
    reason, message = judge_problem(PodProblem(pod="t-train-1", reason="FailedCreatePod", message=said))
    assert reason == Reason.POD_START
    assert "template of its init container" in message
