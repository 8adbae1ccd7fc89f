from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import rendering
import yaml

from instructpt.cluster.launchers import LAUNCHERS, PYTORCHJOB
from instructpt.cluster.launchers import pytorchjob as module
from instructpt.cluster.launchers.base import Capabilities, WorkState
from instructpt.cluster.observe import count_indexes, work_state


def job(status: dict[str, Any], **spec: Any) -> WorkState:
    return work_state(
        {"apiVersion": "batch/v1", "kind": "Job", "spec": {"backoffLimitPerIndex": 3, **spec}, "status": status}
    )


def condition(type_: str, status: str = "True", **said: str) -> dict[str, str]:
    return {"type": type_, "status": status, **said}


@pytest.mark.parametrize(
    ("status", "phase"),
    [
        ({}, "Pending"),
        ({"active": 3, "ready": 0}, "Pending"),
        ({"active": 3, "ready": 1}, "Running"),
        ({"succeeded": 1, "active": 1}, "Running"),
        ({"failed": 1}, "Running"),
        ({"conditions": [condition("SuccessCriteriaMet")], "terminating": 1}, "Running"),
        ({"conditions": [condition("FailureTarget", reason="FailedIndexes")], "terminating": 1}, "Running"),
        ({"conditions": [condition("Suspended")]}, "Suspended"),
        ({"conditions": [condition("Suspended", "False"), condition("Complete", "False")], "ready": 1}, "Running"),
        ({"conditions": [condition("SuccessCriteriaMet"), condition("Complete")]}, "Succeeded"),
        ({"conditions": [condition("FailureTarget"), condition("Failed")]}, "Failed"),
    ],
)
def test_a_job_is_judged_by_the_conditions_that_hold(status: dict[str, Any], phase: str) -> None:
    assert job(status).phase == phase
    assert job({**status, "conditions": status.get("conditions", [])[::-1]}).phase == phase


def test_a_job_says_why_it_fails_before_its_pods_are_gone() -> None:
    leaving = job({"conditions": [condition("FailureTarget", reason="PodFailurePolicy", message="exit 43")]})
    assert (leaving.phase, leaving.reason, leaving.message) == ("Running", "PodFailurePolicy", "exit 43")


def test_a_job_that_was_told_to_stop_is_suspended_at_once() -> None:
    assert job({"ready": 2}, suspend=True).phase == "Suspended"


def test_indexes_are_counted_not_pods() -> None:
    seen = job({"active": 2, "ready": 1, "succeeded": 4, "failed": 9, "failedIndexes": "0,3-5"})
    assert (seen.active, seen.ready, seen.succeeded, seen.failed) == (2, 1, 4, 4)
    plain = {"apiVersion": "batch/v1", "kind": "Job", "spec": {"backoffLimit": 2}, "status": {"failed": 2}}
    assert work_state(plain).failed == 2


@pytest.mark.parametrize(("text", "count"), [("", 0), ("7", 1), ("1,3-5,7", 5), ("0-9999", 10_000)])
def test_intervals_are_counted(text: str, count: int) -> None:
    assert count_indexes(text) == count


def test_what_runs_no_task_is_refused() -> None:
    with pytest.raises(ValueError, match="runs no task"):
        work_state({"apiVersion": "v1", "kind": "Pod", "spec": {}})


# What follows holds for every launcher.


@pytest.fixture(params=list(LAUNCHERS.values()), ids=list(LAUNCHERS))
def launcher(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_a_launcher_builds_what_it_says(launcher: Any) -> None:
    stage, task = next((s, t) for s, t in rendering.tasks(rendering.training(gpusPerNode=8)) if t.name == "train")
    obj = launcher.build(stage, task, 1, rendering.context(rendering.training()))
    assert (obj["apiVersion"], obj["kind"]) == (launcher.api_version, launcher.kind)
    assert obj["metadata"]["name"] == "demo-train-1"
    assert work_state(obj) == WorkState(phase="Pending", wanted=task.replicas)


def test_a_launcher_is_stopped_and_resumed_by_a_patch(launcher: Any) -> None:
    stage, task = next((s, t) for s, t in rendering.tasks(rendering.training()) if t.name == "train")
    obj = launcher.build(stage, task, 1, rendering.context(rendering.training()))
    for suspend, phase in ((True, "Suspended"), (False, "Pending")):
        obj = merged(obj, launcher.suspend_patch(suspend))
        assert work_state(obj).phase == phase


def merged(obj: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    return {**obj, **{key: merged(obj.get(key, {}), value) for key, value in patch.items()}}


# PyTorchJob


def torch(conditions: list[dict[str, str]], **replicas: Any) -> WorkState:
    status = {"conditions": conditions, "replicaStatuses": replicas}
    spec = {"runPolicy": {"suspend": False}}
    return work_state({"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "spec": spec, "status": status})


@pytest.mark.parametrize(
    ("true", "false", "phase"),
    [
        (("Created",), (), "Pending"),
        (("Created", "Running"), (), "Running"),
        (("Created", "Restarting"), ("Running",), "Running"),
        (("Created", "Suspended"), ("Running",), "Suspended"),
        (("Created", "Running"), ("Suspended",), "Running"),
        (("Created", "Succeeded"), ("Running",), "Succeeded"),
        (("Created", "Failed"), ("Running",), "Failed"),
        (("Created", "Failed"), ("Running", "Restarting"), "Failed"),
    ],
)
def test_a_pytorchjob_is_judged_by_the_conditions_that_hold_in_any_order(
    true: tuple[str, ...], false: tuple[str, ...], phase: str
) -> None:
    conditions = [condition(t, reason=f"Job{t}") for t in true] + [condition(t, "False") for t in false]
    for order in itertools.permutations(conditions):
        seen = torch(list(order))
        assert seen.phase == phase
        assert seen.reason == ("" if phase == "Pending" else f"Job{true[-1]}")


def test_pods_of_a_pytorchjob_are_added_up() -> None:
    seen = torch([condition("Running")], Master={"active": 1, "selector": "x"}, Worker={"active": 2, "failed": 1})
    assert (seen.active, seen.ready, seen.succeeded, seen.failed) == (3, 3, 0, 1)
    assert PYTORCHJOB.capabilities() == Capabilities(gang=True, managed_by=True)


def built(**spec: Any) -> dict[str, Any]:
    resource = rendering.training(**spec)
    spec_ = rendering.rendered(resource, "train")[1]["spec"]
    assert isinstance(spec_, dict)
    return spec_


def test_one_node_has_a_master_alone() -> None:
    assert {k: v["replicas"] for k, v in built(nodes=1)["pytorchReplicaSpecs"].items()} == {"Master": 1}
    assert {k: v["replicas"] for k, v in built(nodes=4)["pytorchReplicaSpecs"].items()} == {"Master": 1, "Worker": 3}


def test_a_pytorchjob_leaves_retries_and_torchrun_to_us() -> None:
    spec = built(gpusPerNode=8)
    # With a backoffLimit the training operator would delete the failed pods, and their logs with them.
    assert spec["runPolicy"] == {"cleanPodPolicy": "Running", "suspend": False}
    assert spec.keys() == {"pytorchReplicaSpecs", "runPolicy"}
    for replica in spec["pytorchReplicaSpecs"].values():
        container = replica["template"]["spec"]["containers"][0]
        assert replica["restartPolicy"] == "Never"
        assert container["name"] == "pytorch"
        assert {"name": "pytorchjob-port", "containerPort": 23456} in container["ports"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "8"
        names = {e["name"] for e in container["env"]}
        assert not names & {"MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "INSTRUCTPT_REPLICA"}


def test_a_gang_scheduler_gets_all_pods_or_none() -> None:
    policy = built(podTemplate={"schedulerName": "volcano", "priorityClassName": "high"}, queueName="q")["runPolicy"]
    assert policy["schedulingPolicy"] == {"minAvailable": 2, "priorityClass": "high", "queue": "q"}
    kueue = built(podTemplate={"priorityClassName": "high"}, queueName="q")["runPolicy"]
    assert kueue["schedulingPolicy"] == {"minAvailable": 2, "priorityClass": "high"}


def test_the_init_container_for_the_training_operator_is_restricted() -> None:
    values = {"InitContainerImage": "alpine:3", "MaxTries": "100", "MasterAddr": "demo-train-1-master-0"}
    text = Path(module.__file__).with_name("pytorchjob-init-container.yaml").read_text()
    for name, value in values.items():
        assert f"{{{{.{name}}}}}" in text
        text = text.replace(f"{{{{.{name}}}}}", value)
    (container,) = yaml.safe_load(text)
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "nslookup demo-train-1-master-0" in container["command"][2]
