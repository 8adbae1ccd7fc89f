"""F8 and F9: pods that are taken away, that fail, that do not start. Many objects run at once; one fault each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import operators
import pytest
from history import History
from operators import Live
from player import PODS, UNSCHEDULABLE, End, Stuck, attempt_of

from instructpt.plan.naming import LABEL_NAME, LABEL_STEP, LABEL_TASK, TASK_FINALIZE, TASK_WORK
from instructpt_operator.runtime.client import KubeClient
from instructpt_operator.types import JOBS

pytestmark = pytest.mark.cluster

LOST = {"uri": "s3://lab/x", "digest": "sha256:0", "counts": {}, "missing": 3}
"""What a finishing task leaves where micro-shards were not done."""


def failure(type_: str, message: str) -> dict[str, Any]:
    """A worker's termination message."""
    return {"error": {"type": type_, "message": message}}


def is_work(labels: Mapping[str, str]) -> bool:
    return labels[LABEL_TASK] == TASK_WORK and labels[LABEL_STEP] in ("synthesis", "train")


def stage_of(obj: Mapping[str, Any], step: str) -> dict[str, Any]:
    return next(s for s in obj["status"]["stages"] if s["step"] == step)


SYNTHESES: dict[str, tuple[End, ...]] = {
    "disrupted": (End(137, disrupted=True), End(137, disrupted=True)),
    "oom-once": (End(137, reason="OOMKilled"),),
    "killed-once": (End(143),),
    "cannot-work": (End(42, failure("EngineError", "the engine does not start")),),
}
"""How the first pods of each synthesis end; all later ones end well."""


def test_f8_pods_of_a_job_that_are_taken_away_cost_nothing(
    live: Live, kube: KubeClient, namespace: str, recorded: History
) -> None:
    def script(labels: Mapping[str, str], number: int) -> End:
        first = SYNTHESES[labels[LABEL_NAME]]
        return first[number] if is_work(labels) and number < len(first) else End()

    _, player = live(script)
    objects = [operators.synthesis(name) for name in SYNTHESES]
    for obj in objects:
        operators.create(kube, namespace, obj)
    for obj in objects:
        name = obj["metadata"]["name"]
        done = operators.wait_condition(kube, namespace, obj, "Complete")
        stage = stage_of(done, "synthesis")
        assert (stage["attempt"], stage.get("failures", 0), done["status"]["restarts"]) == (1, 0, 0), name
        assert recorded.attempts(namespace, "synthesis").count(1) == len(SYNTHESES)
        # The pods that ended badly were really made again, unless their index is of no use.
        expected = 2 if name == "cannot-work" else 2 + len(SYNTHESES[name])
        assert player.played[namespace, name, "synthesis", TASK_WORK] == expected, name
    assert all(len(uids) == 1 for uids in recorded.created(namespace).values())


def test_f8_stopped_workers_come_back_with_the_next_attempt_and_spend_no_budget(
    live: Live, kube: KubeClient, namespace: str, recorded: History
) -> None:
    """All workers of an attempt leave when told to: the ledger lacks their part, and nobody is to blame."""

    def script(labels: Mapping[str, str], number: int) -> End:
        if attempt_of(labels) > 1 or labels[LABEL_STEP] != "synthesis":
            return End()
        return End(75) if labels[LABEL_TASK] == TASK_WORK else End(message=LOST)

    live(script)
    obj = operators.synthesis("syn", backoffLimit=0)
    operators.create(kube, namespace, obj)
    done = operators.wait_condition(kube, namespace, obj, "Complete")
    stage = stage_of(done, "synthesis")
    assert (stage["attempt"], stage.get("failures", 0), done["status"]["restarts"]) == (2, 0, 1)
    assert recorded.attempts(namespace, "synthesis") == [1, 2]
    recorded.check_one_attempt_at_a_time(namespace)


def test_f8_deleted_pod_of_a_job_is_made_up_for_by_its_peers(
    live: Live, kube: KubeClient, namespace: str, recorded: History
) -> None:
    _, player = live(lambda labels, number: End(wait=is_work(labels)))
    obj = operators.synthesis("syn")
    operators.create(kube, namespace, obj)
    # Both have run, or one would be gone before anybody saw it.
    operators.wait_for(lambda: player.played[namespace, "syn", "synthesis", TASK_WORK] == 2)
    pod = kube.list(PODS, namespace)[0]
    kube.delete(PODS, namespace, pod["metadata"]["name"])
    operators.wait_for(lambda: _failed_indexes(kube, namespace, "syn-synthesis-1"))
    player.release("synthesis")
    done = operators.wait_condition(kube, namespace, obj, "Complete")
    assert player.played[namespace, "syn", "synthesis", TASK_WORK] == 2
    assert (done["status"]["attempt"], done["status"]["restarts"]) == (1, 0)
    assert recorded.attempts(namespace, "synthesis") == [1]


def test_f8_gang_that_loses_a_pod_starts_again_and_spends_no_budget(
    live: Live, kube: KubeClient, namespace: str, recorded: History
) -> None:
    """One training loses a pod for good, in another it is preempted; the peers then fail with codes of their own."""

    def script(labels: Mapping[str, str], number: int) -> End:
        if not is_work(labels) or attempt_of(labels) > 1:
            return End()
        if labels[LABEL_NAME] == "preempted":
            return End(137, disrupted=True) if number == 1 else End(1, failure("PeerLostError", "a peer is gone"))
        return End(1, failure("PeerLostError", "a peer is gone"), wait=True)

    _, player = live(script)
    taken, preempted = (operators.training(name, backoffLimit=0) for name in ("taken", "preempted"))
    for obj in (taken, preempted):
        operators.create(kube, namespace, obj)
    operators.wait_condition(kube, namespace, taken, "Running")
    worker = operators.wait_for(lambda: _running(kube, namespace, "taken-train-1-worker-0"))
    # Kubernetes counts whole seconds, and by them a pod that was made again is known.
    operators.wait_for(lambda: operators.age(worker) > 1.5)
    kube.delete(PODS, namespace, worker["metadata"]["name"])
    operators.wait_for(lambda: player.played[namespace, "taken", "train", TASK_WORK] == 3)
    player.release("train")
    for obj in (taken, preempted):
        done = operators.wait_condition(kube, namespace, obj, "Complete")
        stage = stage_of(done, "train")
        assert (stage["attempt"], stage.get("failures", 0)) == (2, 0), obj["metadata"]["name"]
        assert done["status"]["restarts"] == 1
    assert sorted(recorded.attempts(namespace, "train", "PyTorchJob")) == [1, 1, 2, 2]
    recorded.check_one_attempt_at_a_time(namespace)


def _failed_indexes(kube: KubeClient, namespace: str, job: str) -> str:
    found: str = kube.get(JOBS, namespace, job).get("status", {}).get("failedIndexes", "")
    return found


def _running(kube: KubeClient, namespace: str, name: str) -> dict[str, Any] | None:
    found = [p for p in kube.list(PODS, namespace) if p["metadata"]["name"] == name]
    return found[0] if found and found[0].get("status", {}).get("phase") == "Running" else None


FAILURES: dict[str, tuple[dict[str, Any], End, str, str]] = {
    "syn-42": (
        operators.synthesis("syn-42", backoffLimit=0),
        End(42, failure("EngineError", "the engine does not start")),
        "BackoffLimitExceeded",
        "the engine does not start",
    ),
    "syn-43": (
        operators.synthesis("syn-43"),
        End(43, failure("CredentialsError", "HTTP 403 from s3://lab")),
        "WrongCredentials",
        "HTTP 403 from s3://lab",
    ),
    "syn-oom": (
        operators.synthesis("syn-oom", backoffLimit=0),
        End(137, reason="OOMKilled"),
        "BackoffLimitExceeded",
        "ran out of memory; raise podTemplate.resources.limits.memory",
    ),
    "syn-1": (
        operators.synthesis("syn-1", backoffLimit=1, parallelism=1),
        End(1, failure("ValueError", "no such thing")),
        "BackoffLimitExceeded",
        "synthesis failed 2 times, backoffLimit is 1; the last time:",
    ),
    "trn-43": (
        operators.training("trn-43"),
        End(43, failure("ConfigError", "spec.mixture is empty")),
        "InvalidSpec",
        "spec.mixture is empty",
    ),
    "trn-143": (
        operators.training("trn-143", backoffLimit=1),
        End(143),
        "BackoffLimitExceeded",
        "the worker ended with exit code 143",
    ),
}
"""Object, how all of its workers end, and what it then says."""


def test_f9_exit_codes_end_in_the_right_reason(live: Live, kube: KubeClient, namespace: str, recorded: History) -> None:
    def script(labels: Mapping[str, str], number: int) -> End:
        if is_work(labels):
            return FAILURES[labels[LABEL_NAME]][1]
        return End(message=LOST) if (labels[LABEL_STEP], labels[LABEL_TASK]) == ("synthesis", TASK_FINALIZE) else End()

    live(script)
    for obj, *_ in FAILURES.values():
        operators.create(kube, namespace, obj)
    for name, (obj, _, reason, said) in FAILURES.items():
        failed = operators.wait_condition(kube, namespace, obj, "Failed", seconds=120)
        condition = operators.condition(failed, "Failed")
        assert condition["reason"] == reason, (name, condition)
        assert said in condition["message"], name
        limit = failed["spec"]["backoffLimit"]
        attempts = 1 if name.endswith("43") and name != "trn-143" else limit + 1
        assert failed["status"]["attempt"] == attempts, name
    recorded.check_one_attempt_at_a_time(namespace)
    recorded.check_ends_stay(namespace)


STUCK: dict[str, tuple[Stuck, str, str]] = {
    "image": (Stuck("ImagePullBackOff", "Back-off pulling image"), "ImageCannotBePulled", "podTemplate.image"),
    "secret": (
        Stuck("CreateContainerConfigError", 'secret "s3" not found'),
        "SecretMissing",
        "create the Secret in this namespace",
    ),
    "nodes": (Stuck(UNSCHEDULABLE, "0/3 nodes are available: 3 Insufficient cpu."), "Unschedulable", "add nodes"),
    "command": (Stuck("CreateContainerError", "no such command"), "PodCannotStart", "no such command"),
}


@pytest.mark.parametrize("make", [operators.synthesis, operators.training], ids=["SynthesisJob", "TrainingJob"])
def test_f9_pods_that_cannot_start_block_with_the_right_reason_and_go_on(
    live: Live, kube: KubeClient, namespace: str, make: Any
) -> None:
    stuck = True

    def script(labels: Mapping[str, str], number: int) -> End | Stuck:
        return STUCK[labels[LABEL_NAME]][0] if stuck and is_work(labels) else End()

    _, player = live(script)
    objects = {name: make(name) for name in STUCK}
    for obj in objects.values():
        operators.create(kube, namespace, obj)
    for name, obj in objects.items():
        blocked = operators.wait_condition(kube, namespace, obj, "Blocked")
        _, reason, said = STUCK[name]
        condition = operators.condition(blocked, "Blocked")
        assert condition["reason"] == reason, name
        assert said in condition["message"]
        assert blocked["status"]["phase"] == "Blocked"
    stuck = False
    player.forget()
    for obj in objects.values():
        done = operators.wait_condition(kube, namespace, obj, "Complete")
        assert not operators.is_true(done, "Blocked")
        assert all(s["attempt"] == 1 for s in done["status"]["stages"])
