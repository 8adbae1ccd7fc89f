"""F8: pods leave their nodes, and nodes leave with their pods; no budget is spent on it.

Pods are bound to nodes here, so they leave as they do there: marked with a time, gone once their kubelet says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import invariants
import operators
import pytest
from history import History
from operators import Live
from player import PODS, PYTORCHJOBS, End, evict

from instructpt.plan.naming import LABEL_NAME, LABEL_STEP, LABEL_TASK, TASK_WORK
from instructpt_operator import pods as judged
from instructpt_operator.__main__ import Operator
from instructpt_operator.runtime.client import KubeClient

pytestmark = pytest.mark.cluster

NODES = tuple(f"node-{n}" for n in range(40))
"""More than there are pods, so each has one for itself."""


def waits(labels: Mapping[str, str], number: int) -> End:
    """Workers of the synthesis and of the training run until they are released."""
    return End(wait=labels[LABEL_TASK] == TASK_WORK and labels[LABEL_STEP] in ("synthesis", "train"))


def running(kube: KubeClient, namespace: str, name: str) -> list[dict[str, Any]]:
    """Pods of an object that run and stay, in the order of their names."""
    found = kube.list(PODS, namespace, label_selector=f"{LABEL_NAME}={name}", field_selector="status.phase=Running")
    return sorted((p for p in found if "deletionTimestamp" not in p["metadata"]), key=lambda p: p["metadata"]["name"])


def begin(
    operator: Operator, kube: KubeClient, namespace: str, sizes: Mapping[str, int]
) -> tuple[dict[str, dict[str, Any]], dict[str, list[dict[str, Any]]]]:
    """Objects by name (``-syn`` or ``-trn``), and their pods once all run and the operator has seen those of gangs."""
    objects = {
        name: operators.synthesis(name, parallelism=size, backoffLimit=0) if name.endswith("syn")
        else operators.training(name, nodes=size, backoffLimit=0)
        for name, size in sizes.items()
    }  # fmt: skip
    for obj in objects.values():
        operators.create(kube, namespace, obj)
    for name, size in sizes.items():
        operators.wait_for(lambda n=name, s=size: len(running(kube, namespace, n)) == s, otherwise=f"{name}: not all")
    looks = operator.manager._looker._looks
    for gang in kube.list(PYTORCHJOBS, namespace):
        uid, size = gang["metadata"]["uid"], sizes[gang["metadata"]["labels"][LABEL_NAME]]
        operators.wait_for(lambda u=uid, s=size: u in looks and len(looks[u].ran) == s)
    return objects, {name: running(kube, namespace, name) for name in sizes}


def finish(kube: KubeClient, namespace: str, objects: Mapping[str, Mapping[str, Any]]) -> None:
    """All are Complete: a synthesis in its first attempt, a gang in its second, and nobody is to blame."""
    for name, obj in objects.items():
        done = operators.wait_condition(kube, namespace, obj, "Complete")
        step = "synthesis" if name.endswith("syn") else "train"
        stage = next(s for s in done["status"]["stages"] if s["step"] == step)
        attempt = 1 if step == "synthesis" else 2
        assert (stage["attempt"], stage["failures"], done["status"]["restarts"]) == (attempt, 0, attempt - 1), name
        assert not operators.is_true(done, "Blocked"), name


def test_f8_drained_nodes_and_three_of_ten_nodes_lost_at_once(
    live: Live, kube: KubeClient, namespace: str, recorded: History
) -> None:
    """The API for evictions marks and deletes a pod; a lost node's pods are failed by the pod garbage collector."""
    operator, player = live(waits)
    player.nodes = NODES
    sizes = {"drained-syn": 2, "drained-trn": 2, "lost-syn": 6, "lost-trn": 4}
    objects, pods = begin(operator, kube, namespace, sizes)
    for name in ("drained-syn", "drained-trn"):
        evict(kube, pods[name][-1])
    for pod in (*pods["lost-syn"][:2], pods["lost-trn"][-1]):
        player.dead.add(pod["spec"]["nodeName"])
        player.lose(pod)
    taken = {p["metadata"]["uid"] for each in pods.values() for p in each}
    for name, size in sizes.items():
        # Of a Job only those that left are made again; of a gang all.
        same = 0 if name.endswith("trn") else size - (1 if name.startswith("drained") else 2)
        operators.wait_for(
            lambda n=name, s=size, k=same: _made_again(kube, namespace, n, taken) == (k, s - k),
            otherwise=lambda n=name: _made_again(kube, namespace, n, taken),
        )
    player.release("synthesis")
    player.release("train")
    finish(kube, namespace, objects)
    assert player.played[namespace, "drained-syn", "synthesis", TASK_WORK] == 3
    assert player.played[namespace, "lost-syn", "synthesis", TASK_WORK] == 8
    invariants.check(recorded, namespace)
    invariants.converged(operator, kube, namespace)
    invariants.nothing_stays(kube, namespace)


def _made_again(kube: KubeClient, namespace: str, name: str, before: set[str]) -> tuple[int, int]:
    now = [p["metadata"]["uid"] in before for p in running(kube, namespace, name)]
    return sum(now), len(now) - sum(now)


def test_f8_a_pod_on_a_dead_node_is_told_of_and_the_work_goes_on_once_it_is_gone(
    live: Live, kube: KubeClient, namespace: str, recorded: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last worker of a synthesis and one of a gang: asked to leave after the toleration, they say nothing."""
    monkeypatch.setattr(judged, "LEAVING_SECONDS", 1.0)
    operator, player = live(waits)
    player.nodes = NODES
    objects, pods = begin(operator, kube, namespace, {"last-syn": 1, "one-trn": 2})
    lost = [each[-1] for each in pods.values()]
    for pod in lost:
        player.dead.add(pod["spec"]["nodeName"])
        _taint_evicts(kube, pod)
    for name, obj in objects.items():
        blocked = operators.condition(operators.wait_condition(kube, namespace, obj, "Blocked"), "Blocked")
        assert blocked["reason"] == "PodsDoNotLeave", name
        assert f"{pods[name][-1]['metadata']['name']} on node node-" in blocked["message"]
        assert "node.kubernetes.io/out-of-service" in blocked["message"]
    # Nothing took their place meanwhile.
    assert recorded.attempts(namespace, "synthesis") == recorded.attempts(namespace, "train", "PyTorchJob") == [1]
    assert len(kube.list(PODS, namespace, label_selector=f"{LABEL_NAME}=last-syn")) == 1
    for pod in lost:  # the node got the taint, or was removed
        player.lose(pod)
    player.release("synthesis")
    operators.wait_for(lambda: recorded.attempts(namespace, "train", "PyTorchJob") == [1, 2])
    player.release("train")
    finish(kube, namespace, objects)
    invariants.check(recorded, namespace)
    invariants.converged(operator, kube, namespace)
    invariants.nothing_stays(kube, namespace)


def _taint_evicts(kube: KubeClient, pod: Mapping[str, Any]) -> None:
    """As the taint eviction controller does it to the pods of a node that is not ready."""
    meta = pod["metadata"]
    told = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}
    status = {"conditions": [*pod["status"]["conditions"], told]}
    kube.merge_patch(PODS, meta["namespace"], meta["name"], {"status": status}, subresource="status")
    body = {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 1}
    kube.request("DELETE", PODS.path(meta["namespace"], meta["name"]), body=body)
