"""F3, F4, F6 and F11: a stale cache, no API server, a killed leader, deleted objects, missing CRDs."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import invariants
import operators
import pytest
from history import History
from invariants import left
from operators import Live
from player import PODS, End, Player, all_well

from instructpt.plan.naming import LABEL_TASK, TASK_WORK
from instructpt_operator import pods as judged
from instructpt_operator.__main__ import Operator
from instructpt_operator.runtime.backoff import ExponentialBackoff
from instructpt_operator.runtime.client import ApiError, KubeClient, ResourceType
from instructpt_operator.runtime.informer import Informer
from instructpt_operator.runtime.lease import LEASES
from instructpt_operator.types import JOBS, OURS

if TYPE_CHECKING:
    from apiserver import ApiServer

pytestmark = pytest.mark.cluster

NAMESPACES = ResourceType(api_version="v1", kind="Namespace", plural="namespaces", namespaced=False)
CRDS = ResourceType(
    api_version="apiextensions.k8s.io/v1", kind="CustomResourceDefinition", plural="customresourcedefinitions",
    namespaced=False,
)  # fmt: skip
SYN = operators.synthesis("syn")


def waits(labels: Mapping[str, str], number: int) -> End:
    """Workers run until they are released."""
    return End(wait=labels[LABEL_TASK] == TASK_WORK)


def informer_of(operator: Operator, kind: str) -> Informer:
    return next(i for i in operator.manager.caches if i.type.kind == kind)


def freeze(informer: Informer, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the cache learns nothing from its watch or lists."""
    monkeypatch.setattr(informer, "_take", lambda *_: None)
    monkeypatch.setattr(informer, "_swap", lambda *_: None)


def thaw(informer: Informer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Follow the world again, from a list."""
    monkeypatch.undo()
    informer._version = None
    with informer._lock:
        stream = informer._stream
    assert stream is not None
    stream.close()


def confirmations(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names whose absence was to be confirmed by a live read, and which were there."""
    found: list[str] = []
    confirm = operator.manager.executor._confirm_absent

    def counting(obj: Any, outcome: Any, action: Any) -> Any:
        result = confirm(obj, outcome, action)
        if result is not None:
            found.append(action.ref.name)
        return result

    monkeypatch.setattr(operator.manager.executor, "_confirm_absent", counting)
    return found


def running(kube: KubeClient, namespace: str, obj: Mapping[str, Any] = SYN) -> dict[str, Any]:
    operators.create(kube, namespace, obj)
    return operators.wait_condition(kube, namespace, obj, "Running")


def touch(kube: KubeClient, namespace: str, obj: Mapping[str, Any]) -> None:
    """Have the object looked at now."""
    body = {"metadata": {"annotations": {"example.com/touched": f"{time.monotonic_ns()}"}}}
    kube.merge_patch(OURS[obj["kind"]], namespace, obj["metadata"]["name"], body)


def test_f3_cache_older_than_the_child_makes_no_second_one(
    live: Live, kube: KubeClient, namespace: str, recorded: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list from an API server that lags shows no Job, though the status knows that there was one."""
    operator, player = live(waits)
    found = confirmations(operator, monkeypatch)
    running(kube, namespace)
    jobs = informer_of(operator, "Job")

    def missed() -> list[str]:
        if not found:  # again: an event may have shown the Job before anybody looked
            jobs._swap([], "")
        return found

    operators.wait_for(missed)
    operators.wait_for(lambda: jobs.store.get(namespace, "syn-synthesis-1"))
    assert found[0] == "syn-synthesis-1"
    player.release("synthesis")
    done = operators.wait_condition(kube, namespace, SYN, "Complete")
    assert (done["status"]["attempt"], done["status"]["restarts"]) == (1, 0)
    assert {name: len(uids) for name, uids in recorded.created(namespace).items()} == {
        "Job/syn-synthesis-1": 1,
        "Job/syn-synthesis-finalize-1": 1,
    }


def test_f3_frozen_cache_deletes_nothing_that_came_after_it(
    live: Live, kube: KubeClient, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache shows our Job; in truth it is gone, and somebody else's has its name."""
    operator, _ = live(waits)
    running(kube, namespace)
    jobs = informer_of(operator, "Job")
    with monkeypatch.context() as patch:
        freeze(jobs, patch)
        ours = kube.get(JOBS, namespace, "syn-synthesis-1")
        kube.delete(JOBS, namespace, "syn-synthesis-1", propagation="Background")
        foreign = operators.wait_for(lambda: _foreign_job(kube, namespace, "syn-synthesis-1"))
        kube.merge_patch(OURS["SynthesisJob"], namespace, "syn", {"spec": {"suspend": True}})
        # To the operator the Job is still there, so nothing is suspended yet.
        operators.wait_for(lambda: operators.get(kube, namespace, SYN)["status"]["phase"] == "Suspending")  # type: ignore[index]
        cached = jobs.store.get(namespace, "syn-synthesis-1")
        assert cached is not None
        assert cached["metadata"]["uid"] == ours["metadata"]["uid"]
        deletes = operator.manager.executor.writes["delete"]
        operators.wait_for(lambda: operator.manager.executor.writes["delete"] > deletes)
        now = kube.get(JOBS, namespace, "syn-synthesis-1")
        assert now["metadata"]["uid"] == foreign["metadata"]["uid"]
        assert "deletionTimestamp" not in now["metadata"]
        thaw(jobs, patch)
    kube.delete(JOBS, namespace, "syn-synthesis-1")
    operators.wait_for(lambda: jobs.store.get(namespace, "syn-synthesis-1") is None)
    operators.wait_condition(kube, namespace, SYN, "Suspended")
    kube.merge_patch(OURS["SynthesisJob"], namespace, "syn", {"spec": {"suspend": False}})
    operators.wait_for(lambda: "syn-synthesis-2" in {j["metadata"]["name"] for j in kube.list(JOBS, namespace)})


def _foreign_job(kube: KubeClient, namespace: str, name: str) -> dict[str, Any] | None:
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "suspend": True,
            "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "example.com/c"}]}},
        },
    }
    try:
        return kube.create(JOBS, job)
    except ApiError as error:
        if error.status == 409:  # ours is still leaving
            return None
        raise


def test_f4_outage_of_the_api_server_ends_nothing(
    live: Live, pytorchjobs: ApiServer, kube: KubeClient, namespace: str
) -> None:
    operator, player = live(waits)
    running(kube, namespace)
    before = {j["metadata"]["name"]: j["metadata"]["uid"] for j in kube.list(JOBS, namespace)}
    pods = {p["metadata"]["uid"] for p in kube.list(PODS, namespace)}
    informers = len(list(operator.manager.caches))
    asked = operator._client.calls
    pytorchjobs.stop()
    began = time.monotonic()
    try:
        operators.wait_for(lambda: _refused(operator, asked) >= 3 * informers, otherwise="nobody asks any more")
        operators.wait_for(lambda: time.monotonic() - began > 8)
        elapsed, refused = time.monotonic() - began, _refused(operator, asked)
    finally:
        pytorchjobs.start("kube-apiserver")
    # One request a second for each informer, and the one object's own retries.
    assert refused <= (elapsed + 2) * (informers + 1)
    assert operator.health.liveness() == []
    operators.wait_for(lambda: {p["metadata"]["uid"] for p in kube.list(PODS, namespace)} == pods)
    assert {j["metadata"]["name"]: j["metadata"]["uid"] for j in kube.list(JOBS, namespace)} == before
    player.release("synthesis")
    done = operators.wait_condition(kube, namespace, SYN, "Complete", seconds=90)
    assert (done["status"]["attempt"], done["status"]["restarts"]) == (1, 0)
    assert kube.get(JOBS, namespace, "syn-synthesis-1")["metadata"]["uid"] == before["syn-synthesis-1"]


def test_f4_the_end_of_an_outage_is_noticed_within_seconds(
    live: Live, pytorchjobs: ApiServer, kube: KubeClient, namespace: str
) -> None:
    """However long the caches wait by then: the lease is asked for all the time."""
    patient = {"enabled": True, "durationSeconds": 90, "renewDeadlineSeconds": 60.0, "retrySeconds": 0.5}
    operator, player = live(waits, lease=patient)
    running(kube, namespace)
    informers = list(operator.manager.caches)
    errors = [i.stats.errors for i in informers]
    for informer in informers:
        informer._backoff = ExponentialBackoff(0.5, 600.0)  # longer than any wait below
        for _ in range(16):  # as after minutes
            informer._backoff.fail(None)
    queue = operator.manager.queues["SynthesisJob"]
    queue._backoff = ExponentialBackoff(600.0, 600.0)
    queue.retry((namespace, "failed"))  # as after many failures of one object
    pytorchjobs.stop()
    try:
        operators.wait_for(lambda: all(i.stats.errors > n for i, n in zip(informers, errors, strict=True)))
        operators.wait_for(lambda: operator.elector is not None and operator.elector._away)
        assert all(i._unanswered for i in informers)
    finally:
        pytorchjobs.start("kube-apiserver")
    player.release("synthesis")
    # A watch that goes on where it was hears nothing until something changes: being answered is what counts.
    operators.wait_for(lambda: not any(i._unanswered for i in informers))
    operators.wait_for(lambda: queue.failures((namespace, "failed")) == 0)
    operators.wait_condition(kube, namespace, SYN, "Complete")


def _refused(operator: Operator, before: Mapping[tuple[str, int], int]) -> int:
    """Requests since then that got no answer."""
    now = operator._client.calls
    return sum(count - before.get(key, 0) for key, count in now.items() if key[1] == 0)


LEASE = {"enabled": True, "durationSeconds": 3, "renewDeadlineSeconds": 2.0, "retrySeconds": 0.5}


def test_f6_leader_killed_in_the_middle_of_a_run_is_followed_and_r21_follower_ends_well(
    pytorchjobs: ApiServer, kube: KubeClient, namespace: str, recorded: History, tmp_path: Path
) -> None:
    """Two processes; what is left of the run is the second one's, which then ends on SIGTERM and frees the Lease."""

    def holder() -> str:
        try:
            return str(kube.get(LEASES, namespace, "instructpt-operator")["spec"].get("holderIdentity") or "")
        except ApiError as error:
            if error.status == 404:
                return ""
            raise

    replicas = []
    with Player(kube, namespace, waits) as player:
        try:
            for name in ("first", "second"):
                config = operators.config_file(tmp_path, namespace, lease=LEASE)
                log = tmp_path / f"{name}.log"
                replicas.append(operators.spawn(pytorchjobs.kubeconfig, config, log, namespace))
                leader = operators.wait_for(holder, otherwise=log.read_text)
            running(kube, namespace)
            assert operators.kill(replicas[0]) == -signal.SIGKILL
            player.release("synthesis")
            done = operators.wait_condition(kube, namespace, SYN, "Complete", seconds=90)
            assert (done["status"]["attempt"], done["status"]["restarts"]) == (1, 0)
            assert recorded.created(namespace).keys() == {"Job/syn-synthesis-1", "Job/syn-synthesis-finalize-1"}
            assert all(len(uids) == 1 for uids in recorded.created(namespace).values())
            assert holder() not in ("", leader)
            assert operators.kill(replicas[1], signal.SIGTERM) == 0
            assert holder() == ""
        finally:
            for replica in replicas:
                replica.kill()
                replica.wait()
    assert "Traceback" not in (tmp_path / "second.log").read_text()


POINTS: dict[str, Callable[[KubeClient, str, Any], object]] = {
    "at once": lambda kube, namespace, obj: True,
    "workers": lambda kube, namespace, obj: operators.wait_condition(kube, namespace, obj, "Running"),
    "end": lambda kube, namespace, obj: operators.wait_condition(kube, namespace, obj, "Complete"),
}


@pytest.mark.parametrize("point", POINTS)
def test_f11_deleted_object_leaves_nothing_and_nothing_comes_back(
    live: Live, kube: KubeClient, namespace: str, recorded: History, point: str
) -> None:
    operator, _ = live(all_well if point == "end" else waits)
    objects = [operators.synthesis("syn"), operators.training("trn"), operators.pipeline("ipt")]
    if point == "end":
        objects.pop()
    for obj in objects:
        operators.create(kube, namespace, obj)
        POINTS[point](kube, namespace, obj)
    for obj in objects:
        kube.delete(OURS[obj["kind"]], namespace, obj["metadata"]["name"])
    operators.wait_for(lambda: not left(kube, namespace), otherwise=lambda: left(kube, namespace))
    operators.wait_for(
        lambda: not any(q.stats().dirty + q.stats().processing for q in operator.manager.queues.values())
    )
    assert left(kube, namespace) == []
    assert operator.manager._looker._looks == {}, "what was seen of pods is kept for ever"
    for kind in OURS:
        assert all("finalizers" not in o["metadata"] for _, o in recorded.of(namespace, kind))


def test_f11_namespace_that_is_deleted_while_it_runs_ends(
    live: Live, kube: KubeClient, namespace: str, recorded: History, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Workers that fail when they are told to stop: a Job keeps such a pod until it is replaced, which it never is."""
    monkeypatch.setattr(judged, "STRANDED_SECONDS", 1.0)
    operator, player = live(waits)
    player.nodes, player.stopped = ("node-1",), 1
    hasty = {"podTemplate": {"terminationGracePeriodSeconds": 1}}
    objects = [operators.synthesis("syn", **hasty), operators.training("trn"), operators.pipeline("ipt", **hasty)]
    for obj in objects:
        running(kube, namespace, obj)
    operators.wait_for(lambda: len(kube.list(PODS, namespace, field_selector="status.phase=Running")) >= 4)
    kube.delete(NAMESPACES, None, namespace)
    operators.wait_for(lambda: _is_gone(kube, namespace), otherwise=lambda: left(kube, namespace))
    invariants.check(recorded, namespace)
    assert operator.health.liveness() == []
    assert not any("Traceback" in (r.exc_text or "") or r.levelno >= logging.ERROR for r in caplog.records)
    operators.wait_for(lambda: operator.manager.caches.all_keys() == [])


@pytest.mark.parametrize("whole_namespace", [False, True], ids=["object", "namespace"])
def test_f11_deletion_needs_no_operator(
    pytorchjobs: ApiServer, kube: KubeClient, namespace: str, whole_namespace: bool
) -> None:
    with operators.running(pytorchjobs.kubeconfig, namespace), Player(kube, namespace, waits):
        running(kube, namespace, operators.pipeline("ipt"))
        running(kube, namespace)
        operators.wait_for(lambda: len(kube.list(PODS, namespace)) >= 3)
    with Player(kube, namespace, waits):  # a kubelet there is
        if whole_namespace:
            kube.delete(NAMESPACES, None, namespace)
            operators.wait_for(lambda: _is_gone(kube, namespace), otherwise=lambda: left(kube, namespace))
            return
        for kind, name in (("InstructionPretraining", "ipt"), ("SynthesisJob", "syn")):
            kube.delete(OURS[kind], namespace, name)
        operators.wait_for(lambda: not left(kube, namespace), otherwise=lambda: left(kube, namespace))


def _is_gone(kube: KubeClient, namespace: str) -> bool:
    try:
        kube.get(NAMESPACES, None, namespace)
    except ApiError as error:
        return error.status == 404
    return False


def test_f11_crd_removed_and_added_again_while_the_operator_runs(
    live: Live, pytorchjobs: ApiServer, kube: KubeClient, namespace: str
) -> None:
    operator, player = live(waits)
    running(kube, namespace)
    kube.delete(CRDS, None, "synthesisjobs.instructpt.dev")
    try:
        operators.wait_for(lambda: not kube.serves(OURS["SynthesisJob"]))
        operators.wait_for(lambda: informer_of(operator, "SynthesisJob").stats.errors >= 2)
        assert operator.health.liveness() == []
        # One that starts meanwhile is not ready, and lives.
        with operators.running(pytorchjobs.kubeconfig, namespace) as other:
            operators.wait_for(lambda: informer_of(other, "SynthesisJob").stats.errors >= 1)
            assert other.health.liveness() == []
            assert other.health.readiness() != []
        # The others are served all the while.
        corpus = operators.corpus("raw")
        operators.create(kube, namespace, corpus)
        player.release("corpus")
        operators.wait_condition(kube, namespace, corpus, "Complete")
    finally:
        pytorchjobs.apply_crds()
    operators.wait_for(lambda: not kube.list(OURS["SynthesisJob"], namespace))
    again = operators.synthesis("again")
    player.release("synthesis")
    operators.create(kube, namespace, again)
    operators.wait_condition(kube, namespace, again, "Complete", seconds=90)
    assert operator.health.liveness() == []
