"""How the Job controller judges our workers' exit codes, and how that is read; the test plays the kubelet."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import rendering

from instructpt.cluster.launchers.base import WorkState
from instructpt.cluster.observe import work_state

if TYPE_CHECKING:
    from apiserver import ApiServer

MERGE = "application/merge-patch+json"
Indexes = dict[int, dict[str, Any]]


class Work:
    """One Job of a real API server, and its pods."""

    def __init__(self, server: ApiServer, namespace: str, resource: Any, task: str) -> None:
        self.server = server
        config, work = rendering.rendered(resource, task, uid="", namespace=namespace)
        self.pods_path = f"/api/v1/namespaces/{namespace}/pods"
        jobs = f"/apis/batch/v1/namespaces/{namespace}/jobs"
        self.path = f"{jobs}/{work['metadata']['name']}"
        for path, obj in ((f"/api/v1/namespaces/{namespace}/configmaps", config), (jobs, work)):
            status, answer = server.request("POST", f"{path}?fieldValidation=Strict", obj)
            assert status == 201, answer

    def job(self) -> dict[str, Any]:
        status, answer = self.server.request("GET", self.path)
        assert status == 200, answer
        return answer

    def pods(self) -> Indexes:
        """The living pod of each index."""
        _, answer = self.server.request("GET", self.pods_path)
        return {
            int(pod["metadata"]["labels"].get("batch.kubernetes.io/job-completion-index", 0)): pod
            for pod in answer["items"]
            if pod["status"]["phase"] in ("Pending", "Running") and "deletionTimestamp" not in pod["metadata"]
        }

    def wait(self, holds: Callable[[], Any], what: str) -> Any:
        deadline = time.monotonic() + 60
        while not (found := holds()):
            assert time.monotonic() < deadline, f"{what}: {self.job()['status']}"
            time.sleep(0.1)
        return found

    def index(self, index: int, *, other_than: str = "") -> dict[str, Any]:
        def living() -> dict[str, Any] | None:
            pod = self.pods().get(index)
            return pod if pod is not None and pod["metadata"]["uid"] != other_than else None

        pod = self.wait(living, f"index {index} has no pod")
        assert isinstance(pod, dict)
        return pod

    def end(self, pod: dict[str, Any], code: int, *, disrupted: bool = False) -> None:
        """The pod's container exits."""
        name = pod["spec"]["containers"][0]["name"]
        ended = {"exitCode": code, "reason": "Completed" if code == 0 else "Error"}
        status = {
            "phase": "Succeeded" if code == 0 else "Failed",
            "containerStatuses": [
                {"name": name, "image": "x", "imageID": "", "ready": False, "restartCount": 0,
                 "state": {"terminated": ended}}
            ],
            "conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "x"}] if disrupted else [],
        }  # fmt: skip
        path = f"{self.pods_path}/{pod['metadata']['name']}/status"
        code_, answer = self.server.request("PATCH", path, {"status": status}, content_type=MERGE)
        assert code_ == 200, answer

    def ended(self) -> WorkState:
        def state() -> WorkState | None:
            seen = work_state(self.job())
            return seen if seen.phase in ("Succeeded", "Failed") else None

        seen = self.wait(state, "the Job does not end")
        assert isinstance(seen, WorkState)
        return seen


@pytest.fixture
def synthesis(apiserver: ApiServer, namespace: str) -> Work:
    wait_for_service_account(apiserver, namespace)
    return Work(apiserver, namespace, rendering.synthesis(), "synthesis")


def wait_for_service_account(server: ApiServer, namespace: str) -> None:
    deadline = time.monotonic() + 30
    while server.request("GET", f"/api/v1/namespaces/{namespace}/serviceaccounts/default")[0] != 200:
        assert time.monotonic() < deadline, "no service account"
        time.sleep(0.1)


def test_the_others_go_on_where_a_worker_cannot_work(synthesis: Work) -> None:
    pods = [synthesis.index(i) for i in range(3)]
    synthesis.end(pods[0], 42)

    def others_go_on() -> bool:
        # The controller writes the failed index before it counts the failed pod.
        seen = work_state(synthesis.job())
        return (seen.phase, seen.active, seen.failed) == ("Running", 2, 1)

    synthesis.wait(others_go_on, "index 0 does not fail beside two that run")
    synthesis.end(pods[1], 0)
    synthesis.end(pods[2], 0)
    seen = synthesis.ended()
    assert (seen.phase, seen.reason, seen.succeeded, seen.failed) == ("Failed", "FailedIndexes", 2, 1)


def test_a_bad_configuration_ends_the_job_at_once(synthesis: Work) -> None:
    synthesis.end(synthesis.index(1), 43)
    seen = synthesis.ended()
    assert (seen.phase, seen.reason) == ("Failed", "PodFailurePolicy")
    assert "43" in seen.message


def test_a_disruption_is_not_counted(synthesis: Work) -> None:
    """Whatever a worker says that is drained."""
    pods = [synthesis.index(i) for i in range(3)]
    for pod, code, disrupted in zip(pods, (75, 137, 42), (True, True, True), strict=True):
        synthesis.end(pod, code, disrupted=disrupted)
    again = [synthesis.index(i, other_than=pods[i]["metadata"]["uid"]) for i in range(3)]
    assert work_state(synthesis.job()).failed == 0
    for pod in again:
        synthesis.end(pod, 0)
    seen = synthesis.ended()
    assert (seen.phase, seen.succeeded, seen.failed) == ("Succeeded", 3, 0)


def test_f11_a_worker_that_is_stopped_keeps_no_finalizer(synthesis: Work, apiserver: ApiServer) -> None:
    """It is not replaced, so a namespace that is being deleted needs no new pod to come to its end."""
    pods = [synthesis.index(i) for i in range(3)]
    synthesis.end(pods[0], 75)
    synthesis.end(pods[1], 0)
    synthesis.end(pods[2], 0)
    seen = synthesis.ended()
    assert (seen.phase, seen.reason, seen.failed) == ("Failed", "FailedIndexes", 1)


def test_a_job_of_one_worker_fails_where_it_cannot_work(apiserver: ApiServer, namespace: str) -> None:
    wait_for_service_account(apiserver, namespace)
    work = Work(apiserver, namespace, rendering.corpus(backoffLimit=0), "corpus")
    work.end(work.index(0), 1)
    seen = work.ended()
    assert (seen.phase, seen.reason, seen.failed) == ("Failed", "FailedIndexes", 1)


@pytest.mark.parametrize(("code", "phase", "reason"), [(0, "Succeeded", ""), (43, "Failed", "PodFailurePolicy")])
def test_a_finishing_task_ends_with_its_only_pod(
    apiserver: ApiServer, namespace: str, code: int, phase: str, reason: str
) -> None:
    wait_for_service_account(apiserver, namespace)
    work = Work(apiserver, namespace, rendering.corpus(), "corpus-finalize")
    work.end(work.index(0), code)
    seen = work.ended()
    assert (seen.phase, seen.reason) == (phase, reason)
