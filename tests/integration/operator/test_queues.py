"""F10 as a queue does it: Kueue suspends and resumes the child, never the object, which it does not know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import invariants
import operators
import pytest
from history import History
from operators import Live
from player import PODS, PYTORCHJOBS, End

from instructpt.plan.naming import LABEL_STEP, LABEL_TASK, TASK_WORK
from instructpt_operator.runtime.client import KubeClient
from instructpt_operator.types import JOBS

pytestmark = pytest.mark.cluster

TIMES = 20
CHILDREN = (
    (operators.synthesis("syn", queueName="gpus", backoffLimit=0), JOBS, "syn-synthesis-1", "synthesis"),
    (operators.training("trn", queueName="gpus", backoffLimit=0), PYTORCHJOBS, "trn-train-1", "train"),
)
"""Object, and the child that is queued."""


def waits(labels: Mapping[str, str], number: int) -> End:
    """Workers of the synthesis and of the training run until they are released."""
    return End(wait=labels[LABEL_TASK] == TASK_WORK and labels[LABEL_STEP] in ("synthesis", "train"))


def hold(kube: KubeClient, namespace: str, suspend: bool) -> None:
    """As Kueue does: it owns this field of a queued child."""
    for _, type_, name, _ in CHILDREN:
        spec: dict[str, Any] = {"suspend": suspend}
        kube.merge_patch(type_, namespace, name, {"spec": spec if type_ is JOBS else {"runPolicy": spec}})


def running(kube: KubeClient, namespace: str) -> int:
    """Pods that run and stay."""
    found = kube.list(PODS, namespace, field_selector="status.phase=Running")
    return sum("deletionTimestamp" not in p["metadata"] for p in found)


def test_f10_a_queue_evicts_and_admits_twenty_times(
    live: Live, kube: KubeClient, namespace: str, recorded: History
) -> None:
    """No eviction spends budget or makes another attempt: that one would stand at the end of the queue."""
    operator, player = live(waits)
    player.nodes = ("node-1", "node-2")
    for obj, *_ in CHILDREN:
        operators.create(kube, namespace, obj)
    for turn in range(TIMES):
        operators.wait_for(lambda: running(kube, namespace) == 4, otherwise=f"not running, turn {turn}")
        hold(kube, namespace, True)
        operators.wait_for(lambda: running(kube, namespace) == 0, otherwise=f"not evicted, turn {turn}")
        if turn == TIMES // 2:
            for obj, *_ in CHILDREN:
                operators.wait_for(lambda obj=obj: _quota(kube, namespace, obj) == ("Queued", "False"))
        hold(kube, namespace, False)
    operators.wait_for(lambda: running(kube, namespace) == 4)
    for obj, _, _, step in CHILDREN:
        operators.wait_for(lambda obj=obj: _quota(kube, namespace, obj)[1] == "True")
        player.release(step)
        done = operators.wait_condition(kube, namespace, obj, "Complete")
        stage = next(s for s in done["status"]["stages"] if s["step"] == step)
        assert (stage["attempt"], stage.get("failures", 0), done["status"]["restarts"]) == (1, 0, 0)
    invariants.check(recorded, namespace)
    invariants.converged(operator, kube, namespace)
    invariants.nothing_stays(kube, namespace)


def _quota(kube: KubeClient, namespace: str, obj: Mapping[str, Any]) -> tuple[str, str]:
    now = operators.get(kube, namespace, obj)
    assert now is not None
    return now["status"]["phase"], operators.condition(now, "QuotaReserved").get("status", "")
