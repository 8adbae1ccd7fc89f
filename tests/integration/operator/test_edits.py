"""F10 and F12: an object is suspended, resumed and edited while it runs, or its child's name is taken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import invariants
import operators
import pytest
from figures import told
from history import History
from operators import Live
from player import CONFIG_MAPS, PODS, PYTORCHJOBS, End

from instructpt.plan.naming import ANNOTATION_RECONCILE, LABEL_TASK, TASK_WORK
from instructpt_operator.runtime.client import ApiError, KubeClient
from instructpt_operator.types import JOBS, OURS

pytestmark = pytest.mark.cluster

TIMES, MANY_TIMES = 10, 50


def waits(labels: Mapping[str, str], number: int) -> End:
    """Workers run until they are released."""
    return End(wait=labels[LABEL_TASK] == TASK_WORK)


def edit(kube: KubeClient, namespace: str, obj: Mapping[str, Any], **spec: Any) -> dict[str, Any]:
    return kube.merge_patch(OURS[obj["kind"]], namespace, obj["metadata"]["name"], {"spec": spec})


def compute(kube: KubeClient, namespace: str) -> list[str]:
    return [j["metadata"]["name"] for j in kube.list(JOBS, namespace)]


def test_f10_suspended_and_resumed_ten_times_in_the_middle(
    live: Live, kube: KubeClient, namespace: str, recorded: History
) -> None:
    _, player = live(waits)
    obj = operators.synthesis("syn", backoffLimit=0, activeDeadlineSeconds=3600)
    operators.create(kube, namespace, obj)
    for turn in range(TIMES):
        operators.wait_for(lambda turn=turn: compute(kube, namespace) == [f"syn-synthesis-{turn + 1}"])
        edit(kube, namespace, obj, suspend=True)
        suspended = operators.wait_condition(kube, namespace, obj, "Suspended")
        operators.wait_for(lambda: not compute(kube, namespace))
        assert "startTime" not in suspended["status"]
        edit(kube, namespace, obj, suspend=False)
    player.release("synthesis")
    done = operators.wait_condition(kube, namespace, obj, "Complete")
    (stage,) = done["status"]["stages"]
    assert (stage["attempt"], stage.get("failures", 0)) == (TIMES + 1, 0)
    assert done["status"]["restarts"] == TIMES
    assert stage["result"]["counts"]["pairs"] == 300
    assert recorded.attempts(namespace, "synthesis") == list(range(1, TIMES + 2))
    assert all(len(uids) == 1 for uids in recorded.created(namespace).values())
    recorded.check_one_attempt_at_a_time(namespace)


def test_f10_suspend_that_comes_while_children_are_created(
    live: Live, kube: KubeClient, namespace: str, recorded: History
) -> None:
    """Edits that nobody waits for: whatever the operator is at, nothing is made twice and nothing is counted."""
    operator, _ = live()
    objects = [operators.synthesis("syn", backoffLimit=0), operators.training("trn", backoffLimit=0)]
    for obj in objects:
        operators.create(kube, namespace, obj)
    for turn in range(2 * MANY_TIMES):
        for obj in objects:
            edit(kube, namespace, obj, suspend=turn % 2 == 0)
    for obj in objects:
        done = operators.wait_condition(kube, namespace, obj, "Complete")
        assert all(stage.get("failures", 0) == 0 for stage in done["status"]["stages"])
        assert not operators.is_true(done, "Suspended")
    invariants.check(recorded, namespace)
    invariants.converged(operator, kube, namespace)
    invariants.nothing_stays(kube, namespace)


def test_f10_pipeline_suspends_and_resumes_its_children(live: Live, kube: KubeClient, namespace: str) -> None:
    _, player = live(waits)
    obj = operators.pipeline("ipt")
    operators.create(kube, namespace, obj)
    operators.wait_for(lambda: compute(kube, namespace))
    edit(kube, namespace, obj, suspend=True)
    operators.wait_condition(kube, namespace, obj, "Suspended")
    operators.wait_for(lambda: not kube.list(PODS, namespace) and not compute(kube, namespace))
    edit(kube, namespace, obj, suspend=False)
    operators.wait_for(lambda: compute(kube, namespace))
    child = kube.list(OURS["Corpus"], namespace)[0]
    assert child["spec"]["suspend"] is False
    player.release("corpus")
    operators.wait_condition(kube, namespace, child, "Complete")


def test_f12_legal_edits_reach_the_running_child_and_illegal_ones_are_refused(
    live: Live, kube: KubeClient, namespace: str, recorded: History
) -> None:
    _, player = live(waits)
    obj = operators.synthesis("syn")
    operators.create(kube, namespace, obj)
    operators.wait_condition(kube, namespace, obj, "Running")
    before = kube.get(JOBS, namespace, "syn-synthesis-1")
    for spec, said in (
        ({"storage": {"uri": "s3://lab/elsewhere"}}, "spec.storage cannot change once the object has started"),
        ({"strategy": "tasks", "engine": None}, "spec.strategy cannot change once the object has started"),
        ({"input": {"uri": "s3://lab/other"}}, "spec.input cannot change once the object has started"),
        ({"managedBy": "example.com/other"}, "spec.managedBy cannot change"),
        ({"parallelism": 0}, "spec.parallelism"),
    ):
        with pytest.raises(ApiError) as refused:
            edit(kube, namespace, obj, **spec)
        assert refused.value.status == 422
        assert said in refused.value.message
    edit(kube, namespace, obj, parallelism=4, backoffLimit=7, activeDeadlineSeconds=3600)
    operators.wait_for(lambda: len(kube.list(PODS, namespace)) == 4)
    after = kube.get(JOBS, namespace, "syn-synthesis-1")
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert (after["spec"]["parallelism"], after["spec"]["completions"]) == (4, 4)
    edit(kube, namespace, obj, parallelism=1)
    operators.wait_for(lambda: kube.get(JOBS, namespace, "syn-synthesis-1")["spec"]["completions"] == 1)
    player.release("synthesis")
    done = operators.wait_condition(kube, namespace, obj, "Complete")
    assert done["status"]["attempt"] == 1
    assert recorded.attempts(namespace, "synthesis") == [1]


def test_f12_foreign_object_with_the_childs_name_blocks_until_it_is_gone(
    live: Live, kube: KubeClient, namespace: str, recorded: History
) -> None:
    live()
    foreign = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "syn-synthesis-1", "namespace": namespace, "labels": {"a": "b"}},
        "spec": {
            "suspend": True,
            "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "example.com/c"}]}},
        },
    }
    made = kube.create(JOBS, foreign)
    obj = operators.synthesis("syn")
    operators.create(kube, namespace, obj)
    blocked = operators.wait_condition(kube, namespace, obj, "Blocked")
    condition = operators.condition(blocked, "Blocked")
    assert condition["reason"] == "NameConflict"
    assert "syn-synthesis-1 exists and belongs to something else" in condition["message"]
    assert kube.get(JOBS, namespace, "syn-synthesis-1")["metadata"]["uid"] == made["metadata"]["uid"]
    kube.delete(JOBS, namespace, "syn-synthesis-1")
    # By itself: it is tried again every half minute.
    done = operators.wait_condition(kube, namespace, obj, "Complete")
    assert not operators.is_true(done, "Blocked")
    assert len(recorded.created(namespace)["Job/syn-synthesis-1"]) == 2  # the foreign one, and ours


def test_f12_foreign_objects_with_names_of_a_gang_and_of_a_pipelines_child_stay_as_they_are(
    live: Live, kube: KubeClient, namespace: str, recorded: History
) -> None:
    operator, _ = live()
    disabled = {"annotations": {ANNOTATION_RECONCILE: "disabled"}}
    corpus = operators.corpus("ipt-corpus")
    template = {"spec": {"containers": [{"name": "pytorch", "image": "example.com/c"}]}}
    gang = {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": "trn-train-1", "namespace": namespace},
        "spec": {
            "runPolicy": {"suspend": True},
            "pytorchReplicaSpecs": {"Master": {"replicas": 1, "template": template}},
        },
    }
    foreign = [
        (PYTORCHJOBS, kube.create(PYTORCHJOBS, gang)),
        (OURS["Corpus"], operators.create(kube, namespace, {**corpus, "metadata": {**corpus["metadata"], **disabled}})),
    ]
    objects = [operators.training("trn"), operators.pipeline("ipt")]
    for obj in objects:
        operators.create(kube, namespace, obj)
    for obj, (type_, made) in zip(objects, foreign, strict=True):
        name = made["metadata"]["name"]
        blocked = operators.condition(operators.wait_condition(kube, namespace, obj, "Blocked"), "Blocked")
        assert blocked["reason"] == "NameConflict"
        assert f"{name} exists and belongs to something else" in blocked["message"]
        now = kube.get(type_, namespace, name)
        assert (now["metadata"]["uid"], now["spec"]) == (made["metadata"]["uid"], made["spec"])
        assert "ownerReferences" not in now["metadata"]
        kube.delete(type_, namespace, name)
    for obj in objects:
        operators.wait_condition(kube, namespace, obj, "Complete")
    invariants.check(recorded, namespace, foreign=("PyTorchJob/trn-train-1",))
    invariants.converged(operator, kube, namespace)
    invariants.nothing_stays(kube, namespace)


def test_f12_object_with_ten_thousand_workers_stays_small(live: Live, kube: KubeClient, namespace: str) -> None:
    """Counts, never lists: neither the object nor its child nor its RunSpec grows with the number of shards."""
    operator, player = live(waits, progress={"enabled": True, "intervalSeconds": 1})
    figures = told(
        9999, 10_000, "shards", per_second=3.0, rates={"tokens_per_second": 1e6},
        counts={f"verdict-{n}": 10**9 for n in range(20)},
    )  # fmt: skip
    # Pods without an address are not asked, and nobody gives them one here.
    operator.manager._looker._figures = lambda pods, running: figures  # type: ignore[method-assign]
    obj = operators.synthesis("syn")
    operators.create(kube, namespace, obj)
    seen = operators.wait_for(lambda: _progress(kube, namespace, obj))
    assert seen["status"]["progress"]["total"] == 10_000
    for found in (seen, *kube.list(JOBS, namespace), *kube.list(CONFIG_MAPS, namespace)):
        assert operators.size(found) < 20 * 1024
    player.release("synthesis")


def _progress(kube: KubeClient, namespace: str, obj: Mapping[str, Any]) -> dict[str, Any] | None:
    found = operators.get(kube, namespace, obj)
    return found if found and found.get("status", {}).get("progress", {}).get("total") == 10_000 else None
