"""The executor against a real API server: R10, R11, R12, R13, R14, F3, F5."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pytest

from instructpt.plan.naming import MANAGED_BY, OPERATOR
from instructpt_operator.actions import ConfirmAbsent, ConfirmFresh, Create, Delete, Event, Outcome, Patch, Ref
from instructpt_operator.executor import STATUS_TRIES, Executor, Result
from instructpt_operator.runtime.client import KubeClient, ResourceType
from instructpt_operator.runtime.recorder import EVENTS, EventRecorder

if TYPE_CHECKING:
    from apiserver import ApiServer

pytestmark = pytest.mark.cluster

CORPORA = ResourceType(api_version="instructpt.dev/v1alpha1", kind="Corpus", plural="corpora")
JOBS = ResourceType(api_version="batch/v1", kind="Job", plural="jobs")
TYPES = {(t.api_version, t.kind): t for t in (CORPORA, JOBS)}


class Cluster:
    """A client, an executor, and what it fed to the caches."""

    def __init__(self, server: ApiServer, namespace: str) -> None:
        self.namespace = namespace
        self.client = KubeClient.connect(str(server.kubeconfig), qps=1000, burst=1000)
        self.fed: list[Mapping[str, Any]] = []
        self.may_write: Callable[[], bool] = lambda: True
        self.executor = Executor(
            self.client,
            types=TYPES,
            feed=self.fed.append,
            recorder=EventRecorder(self.client, component="instructpt.dev/operator", instance="test"),
            may_write=lambda: self.may_write(),
        )

    def corpus(self, name: str = "pubmed") -> dict[str, Any]:
        metadata = {"name": name, "namespace": self.namespace}
        spec = {"uri": "s3://in/docs", "storage": {"uri": "s3://out/corpus"}}
        body = {"apiVersion": CORPORA.api_version, "kind": "Corpus", "metadata": metadata, "spec": spec}
        return self.client.create(CORPORA, body)

    def get(self, name: str = "pubmed") -> dict[str, Any]:
        return self.client.get(CORPORA, self.namespace, name)

    def jobs(self) -> list[dict[str, Any]]:
        return self.client.list(JOBS, self.namespace)

    def events(self) -> list[dict[str, Any]]:
        """Ours: the Job controller sends some, too."""
        events = self.client.list(EVENTS, self.namespace)
        return [event for event in events if event.get("reportingController") == "instructpt.dev/operator"]

    def execute(self, obj: Mapping[str, Any], outcome: Outcome) -> Result:
        return self.executor.execute(obj, outcome, recompute=lambda live: outcome)

    def ref(self, name: str = "pubmed-inspect-1", uid: str = "") -> Ref:
        return Ref(api_version="batch/v1", kind="Job", namespace=self.namespace, name=name, uid=uid)


@pytest.fixture
def cluster(apiserver: ApiServer, namespace: str) -> Cluster:
    return Cluster(apiserver, namespace)


def job(owner: Mapping[str, Any] | None, namespace: str, name: str = "pubmed-inspect-1") -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name, "namespace": namespace, "labels": {MANAGED_BY: OPERATOR}}
    if owner is not None:
        meta = owner["metadata"]
        metadata["ownerReferences"] = [
            {
                "apiVersion": owner["apiVersion"],
                "kind": owner["kind"],
                "name": meta["name"],
                "uid": meta["uid"],
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ]
    pod = {"restartPolicy": "Never", "containers": [{"name": "worker", "image": "none"}]}
    spec = {"suspend": True, "template": {"spec": pod}}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


def creating(owner: Mapping[str, Any], cluster: Cluster) -> Create:
    return Create(object=job(owner, cluster.namespace), owner_uid=owner["metadata"]["uid"])


STATUS = {
    "phase": "Running",
    "attempt": 1,
    "conditions": [{"type": "Running", "status": "True", "reason": "StageRunning", "message": ""}],
    "counts": {"documents": 3, "deadLetters": 1},
    "scores": {"loss": 2.0},
    "stages": [{"step": "inspect", "key": "k", "attempt": 1}],
    "startTime": "2026-01-01T00:00:00Z",
}


def test_r10_child_is_created_once_and_adopted_where_it_is_ours(cluster: Cluster) -> None:
    owner = cluster.corpus()
    outcome = Outcome(actions=(creating(owner, cluster),), requeue_after=7)
    for _ in range(3):  # the cache never shows it
        assert cluster.execute(owner, outcome) == Result(requeue_after=7)
    assert len(cluster.jobs()) == 1
    assert {fed["metadata"]["uid"] for fed in cluster.fed} == {cluster.jobs()[0]["metadata"]["uid"]}
    assert cluster.client.calls["create", 409] == 2


@pytest.mark.parametrize("confirm", [False, True])
@pytest.mark.parametrize("owned", [False, True])
def test_r10_foreign_object_of_that_name_is_a_conflict_and_stays_as_it_is(
    cluster: Cluster, confirm: bool, owned: bool
) -> None:
    owner = cluster.corpus()
    foreign = cluster.client.create(JOBS, job(cluster.corpus("other") if owned else None, cluster.namespace))
    actions = (ConfirmAbsent(ref=cluster.ref()),) * confirm + (creating(owner, cluster),)
    result = cluster.execute(owner, Outcome(actions=actions, status=STATUS))
    assert result == Result(conflict_name="pubmed-inspect-1")
    assert_same(cluster.jobs(), foreign)
    assert cluster.fed == []
    assert "status" not in cluster.get()


def assert_same(jobs: list[dict[str, Any]], before: Mapping[str, Any]) -> None:
    """One Job, which nobody but the Job controller, which writes its status, has changed."""
    (now,) = jobs
    for name in ("uid", "generation", "ownerReferences", "labels", "deletionTimestamp"):
        assert now["metadata"].get(name) == before["metadata"].get(name)
    assert now["spec"] == before["spec"]


def test_r10_child_of_an_object_that_had_our_name_is_waited_for(cluster: Cluster) -> None:
    owner = cluster.corpus()
    former = copy.deepcopy(owner)
    former["metadata"]["uid"] = "00000000-0000-0000-0000-000000000000"
    leftover = job(former, cluster.namespace)
    # Not controller-managed garbage for this test: the collector would remove it in the middle.
    leftover["metadata"]["finalizers"] = ["instructpt.dev/test"]
    cluster.client.create(JOBS, leftover)
    try:
        assert cluster.execute(owner, Outcome(actions=(creating(owner, cluster),))) == Result(retry=True)
    finally:
        cluster.client.merge_patch(JOBS, cluster.namespace, "pubmed-inspect-1", {"metadata": {"finalizers": None}})


def test_r11_next_attempt_waits_until_the_last_is_really_gone(cluster: Cluster) -> None:
    owner = cluster.corpus()
    cluster.execute(owner, Outcome(actions=(creating(owner, cluster),)))
    first = cluster.jobs()[0]
    finalizers = {"metadata": {"finalizers": ["instructpt.dev/test"]}}
    cluster.client.merge_patch(JOBS, cluster.namespace, first["metadata"]["name"], finalizers)
    assert cluster.execute(owner, Outcome(actions=(Delete(ref=Ref.of(first)),))) == Result()
    # Deleted, but still there: neither a new attempt beside it, nor the dying one taken for it.
    confirm = ConfirmAbsent(ref=Ref.of(first))
    second = Create(object=job(owner, cluster.namespace, "pubmed-inspect-2"), owner_uid=owner["metadata"]["uid"])
    outcome = Outcome(actions=(confirm, second), status=STATUS)
    assert cluster.execute(owner, outcome) == Result(retry=True)
    assert cluster.execute(owner, Outcome(actions=(creating(owner, cluster),))) == Result(retry=True)
    assert [j["metadata"]["uid"] for j in cluster.jobs()] == [first["metadata"]["uid"]]
    assert cluster.fed[-1]["metadata"]["deletionTimestamp"]
    assert "status" not in cluster.get()
    cluster.client.merge_patch(JOBS, cluster.namespace, first["metadata"]["name"], {"metadata": {"finalizers": None}})
    wait_gone(cluster, first["metadata"]["name"])
    assert cluster.execute(owner, outcome) == Result()
    assert [j["metadata"]["name"] for j in cluster.jobs()] == ["pubmed-inspect-2"]


def wait_gone(cluster: Cluster, name: str) -> None:
    gone = threading.Event()
    for _ in range(300):
        if name not in [j["metadata"]["name"] for j in cluster.jobs()]:
            return
        gone.wait(0.1)
    raise AssertionError(f"{name} is still there")


def test_f3_stale_cache_is_found_out_before_anything_is_done(cluster: Cluster) -> None:
    owner = cluster.corpus()
    cluster.execute(owner, Outcome(actions=(creating(owner, cluster),)))
    cluster.fed.clear()
    writes = cluster.executor.writes
    # A visit that does not see the child, and so wants it gone for good, another one, and the object Failed.
    another = Create(object=job(owner, cluster.namespace, "pubmed-inspect-2"), owner_uid=owner["metadata"]["uid"])
    event = Event(type="Warning", reason="Lost", message="the job is gone")
    outcome = Outcome(
        actions=(ConfirmAbsent(ref=cluster.ref()), Delete(ref=cluster.ref()), another),
        status={"phase": "Failed"},
        events=(event,),
    )
    assert cluster.execute(owner, outcome) == Result(retry=True)
    assert cluster.executor.writes == writes
    assert [fed["metadata"]["name"] for fed in cluster.fed] == ["pubmed-inspect-1"]
    assert len(cluster.jobs()) == 1
    assert cluster.events() == []


def test_f3_an_object_that_is_behind_is_judged_again_before_the_first_child(cluster: Cluster) -> None:
    """A cache of the object itself may be attempts behind: what it would create is long gone, its name is free."""
    old = cluster.corpus()
    cluster.execute(old, Outcome(status=STATUS))
    seen: list[Mapping[str, Any]] = []

    def again(live: Mapping[str, Any]) -> Outcome:
        seen.append(live)
        return Outcome(requeue_after=3)

    outcome = Outcome(actions=(ConfirmFresh(), creating(old, cluster)), status={"phase": "Running"})
    assert cluster.executor.execute(old, outcome, recompute=again) == Result(requeue_after=3)
    assert cluster.jobs() == []
    assert [live["status"]["stages"][0]["attempt"] for live in seen] == [1]
    # What others may write at any time is no reason.
    now = cluster.get()
    cluster.client.merge_patch(CORPORA, cluster.namespace, "pubmed", {"metadata": {"labels": {"team": "a"}}})
    cluster.execute(now, Outcome(actions=(ConfirmFresh(), creating(now, cluster))))
    assert len(cluster.jobs()) == 1


def test_r10_the_last_attempts_name_in_other_hands_holds_nobody_up(cluster: Cluster) -> None:
    owner = cluster.corpus()
    foreign = cluster.client.create(JOBS, job(None, cluster.namespace))
    second = Create(object=job(owner, cluster.namespace, "pubmed-inspect-2"), owner_uid=owner["metadata"]["uid"])
    outcome = Outcome(actions=(ConfirmAbsent(ref=cluster.ref()), second), requeue_after=7)
    assert cluster.execute(owner, outcome) == Result(requeue_after=7)
    there = {j["metadata"]["name"]: j["metadata"]["uid"] for j in cluster.jobs()}
    assert there["pubmed-inspect-1"] == foreign["metadata"]["uid"]
    assert "pubmed-inspect-2" in there


def test_r10_a_child_that_lost_its_label_gets_it_back(cluster: Cluster) -> None:
    """Without it the cache does not show it, and its object would wait for ever."""
    owner = cluster.corpus()
    cluster.execute(owner, Outcome(actions=(creating(owner, cluster),)))
    name = cluster.jobs()[0]["metadata"]["name"]
    cluster.client.merge_patch(JOBS, cluster.namespace, name, {"metadata": {"labels": {MANAGED_BY: None}}})
    assert cluster.execute(owner, Outcome(actions=(ConfirmAbsent(ref=cluster.ref()),))) == Result(retry=True)
    assert cluster.jobs()[0]["metadata"]["labels"][MANAGED_BY] == OPERATOR
    assert cluster.fed[-1]["metadata"]["name"] == name


def test_a_child_that_the_server_refuses_is_told_apart_from_other_errors(cluster: Cluster) -> None:
    owner = cluster.corpus()
    wrong = copy.deepcopy(job(owner, cluster.namespace))
    wrong["spec"]["template"]["spec"]["containers"] = []
    result = cluster.execute(owner, Outcome(actions=(Create(object=wrong, owner_uid=owner["metadata"]["uid"]),)))
    assert result.retry
    assert result.refused is not None
    assert "spec.template.spec.containers" in result.refused
    patch = Patch(ref=cluster.ref(uid=""), body={"spec": {"parallelism": "many"}})
    cluster.execute(owner, Outcome(actions=(creating(owner, cluster),)))
    result = cluster.execute(owner, Outcome(actions=(patch,)))
    assert (result.retry, result.refused) == (True, None)


def test_r12_creating_twice_changes_no_generation_and_patches_are_narrow(cluster: Cluster) -> None:
    owner = cluster.corpus()
    outcome = Outcome(actions=(creating(owner, cluster),))
    cluster.execute(owner, outcome)
    first = cluster.jobs()[0]
    label = {"metadata": {"labels": {"kueue.x-k8s.io/queue-name": "theirs"}}}
    cluster.client.merge_patch(JOBS, cluster.namespace, first["metadata"]["name"], label)
    cluster.execute(owner, outcome)
    assert cluster.jobs()[0]["metadata"]["generation"] == first["metadata"]["generation"]
    cluster.execute(owner, Outcome(actions=(Patch(ref=Ref.of(first), body={"spec": {"activeDeadlineSeconds": 60}}),)))
    now = cluster.jobs()[0]
    assert now["spec"]["activeDeadlineSeconds"] == 60
    assert now["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "theirs"
    assert now["spec"]["suspend"] is True


def test_r12_patch_and_delete_of_another_object_of_that_name_change_nothing(cluster: Cluster) -> None:
    owner = cluster.corpus()
    cluster.execute(owner, Outcome(actions=(creating(owner, cluster),)))
    there = cluster.jobs()[0]
    stale = cluster.ref(uid="00000000-0000-0000-0000-000000000000")
    patch = Patch(ref=stale, body={"spec": {"activeDeadlineSeconds": 60}})
    assert cluster.execute(owner, Outcome(actions=(patch,))) == Result(retry=True)
    assert cluster.client.calls["patch", 422] == 1
    assert cluster.execute(owner, Outcome(actions=(Delete(ref=stale),))) == Result()
    assert_same(cluster.jobs(), there)
    gone = Patch(ref=cluster.ref("none", uid="x"), body={"spec": {"suspend": False}})
    assert cluster.execute(owner, Outcome(actions=(gone,))) == Result(retry=True)
    assert cluster.execute(owner, Outcome(actions=(Delete(ref=cluster.ref("none", uid="x")),))) == Result()


def test_r13_status_becomes_what_was_asked_for_and_is_written_once(cluster: Cluster) -> None:
    obj = cluster.corpus()
    cluster.execute(obj, Outcome(status=STATUS))
    obj = cluster.get()
    for _ in range(3):
        cluster.execute(obj, Outcome(status=obj["status"]))
        cluster.execute(obj, Outcome(status={**obj["status"], "cost": None}))
    assert cluster.executor.writes["status"] == 1
    later = {
        "phase": "Complete",
        "counts": {"documents": 4},  # one vanished
        "conditions": [],
        "stages": STATUS["stages"],
    }
    cluster.execute(obj, Outcome(status=later))
    status = cluster.get()["status"]
    assert {name: status[name] for name in later} == later | {"stages": status["stages"]}
    assert [stage["step"] for stage in status["stages"]] == ["inspect"]
    assert "startTime" not in status
    assert not status.get("scores")
    assert cluster.fed[-1] == cluster.get()


def test_r13_stale_status_is_computed_again(cluster: Cluster) -> None:
    stale = cluster.corpus()
    note = {"metadata": {"annotations": {"mine": "kept"}}}
    cluster.client.merge_patch(CORPORA, cluster.namespace, "pubmed", note)
    seen = []

    def recompute(live: Mapping[str, Any]) -> Outcome:
        seen.append(live["metadata"]["annotations"])
        return Outcome(status={"phase": "Again"}, requeue_after=3)

    assert cluster.executor.execute(stale, Outcome(status=STATUS), recompute=recompute) == Result(requeue_after=3)
    assert seen == [{"mine": "kept"}]
    assert cluster.get()["status"]["phase"] == "Again"
    assert cluster.get()["metadata"]["annotations"] == {"mine": "kept"}


def test_status_of_an_object_that_is_gone_or_was_made_anew_is_no_error(cluster: Cluster) -> None:
    obj = cluster.corpus()
    cluster.client.delete(CORPORA, cluster.namespace, "pubmed")
    assert cluster.execute(obj, Outcome(status=STATUS)) == Result()
    cluster.corpus()
    assert cluster.execute(obj, Outcome(status=STATUS)) == Result()
    assert "status" not in cluster.get()


def test_r14_events_come_after_the_status_and_are_counted(cluster: Cluster, apiserver: ApiServer) -> None:
    obj = cluster.corpus()
    event = Event(type="Normal", reason="ShardsPlanned", message="é" * 2000)
    cluster.execute(obj, Outcome(status={"phase": "A"}, events=(event,)))
    for phase in "BCD":
        cluster.execute(cluster.get(), Outcome(status={"phase": phase}, events=(event,)))
    cluster.execute(cluster.get(), Outcome(status=cluster.get()["status"], events=(event,)))
    (sent,) = cluster.events()
    assert sent["series"]["count"] == 4
    assert sent["regarding"]["uid"] == obj["metadata"]["uid"]
    assert 1018 <= len(sent["note"].encode()) <= 1024
    assert "ShardsPlanned" in apiserver.kubectl("events", "-n", cluster.namespace, "--for", "corpus/pubmed")


def test_r15_write_that_waited_for_its_turn_too_long_is_not_sent(cluster: Cluster) -> None:
    """The executor asks, then the client waits for its budget: by the time it may send, the lease is too old."""
    obj = cluster.corpus()
    asked = iter([True])
    cluster.may_write = lambda: next(asked, False)
    before = cluster.client.calls
    result = cluster.execute(obj, Outcome(status=STATUS))
    assert result.retry
    assert result.error is not None
    assert result.error.reason == "NotLeader"
    assert cluster.client.calls == before
    assert "status" not in cluster.get()


def test_r18_paused_object_gets_no_write(cluster: Cluster) -> None:
    obj = cluster.corpus()
    pause = {"metadata": {"annotations": {"instructpt.dev/reconcile": "disabled"}}}
    cluster.client.merge_patch(CORPORA, cluster.namespace, "pubmed", pause)
    # Even where the cache has not seen it: the status write meets a conflict.
    assert cluster.execute(obj, Outcome(status=STATUS)) == Result()
    outcome = Outcome(actions=(creating(obj, cluster),), status=STATUS)
    assert cluster.execute(cluster.get(), outcome) == Result()
    assert cluster.jobs() == []
    assert "status" not in cluster.get()


def test_f5_conflict_storm_costs_three_tries_at_most_and_no_edit(
    cluster: Cluster, apiserver: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.corpus()
    over, edits = threading.Event(), [0]
    writer = KubeClient.connect(str(apiserver.kubeconfig), qps=1000, burst=1000)

    def storm() -> None:
        while not over.is_set():
            edits[0] += 1
            body = {"metadata": {"annotations": {f"edit-{edits[0]}": "", "edits": str(edits[0])}}}
            if edits[0] > 20:
                body["metadata"]["annotations"][f"edit-{edits[0] - 20}"] = None  # type: ignore[assignment]
            writer.merge_patch(CORPORA, cluster.namespace, "pubmed", body)

    thread = threading.Thread(target=storm)
    thread.start()
    stale, visits, tries = cluster.get(), 0, []
    try:
        for n in range(50):
            outcome = Outcome(status={"phase": "Running", "restarts": n})
            while True:
                visits += 1
                before = cluster.executor.writes["status"]
                result = cluster.execute(stale, outcome)
                tries.append(cluster.executor.writes["status"] - before)
                stale = cluster.fed[-1]  # type: ignore[assignment]
                if not result.retry:
                    break
                assert result.error is None
            assert visits < 1000
    finally:
        over.set()
        thread.join()
    conflicts = cluster.client.calls["patch", 409]
    assert conflicts > 0, "the storm met nothing"
    assert max(tries) <= STATUS_TRIES
    live = cluster.get()
    assert live["status"]["restarts"] == 49
    assert live["metadata"]["annotations"]["edits"] == str(edits[0])
    assert set(live["metadata"]["annotations"]) == {"edits"} | {f"edit-{edits[0] - n}" for n in range(20)}
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
