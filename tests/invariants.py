"""The invariants I1 to I6 of the operator, asked of the API server and of the history of its watches after any fault.

Workers are played here, so I1 and I4 are those of their children: one child per name and attempt, and a result that
stays as it is. What workers themselves promise of micro-shards is tried in ``tests/unit/synthesis`` and on real S3.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import operators
from history import History
from player import CONFIG_MAPS, PODS, PYTORCHJOBS

from instructpt.plan.naming import LABEL_KIND, LABEL_NAME, MANAGED_BY, OPERATOR
from instructpt_operator.__main__ import Operator
from instructpt_operator.runtime.client import KubeClient
from instructpt_operator.types import JOBS, OURS

MANAGED = f"{MANAGED_BY}={OPERATOR}"
NEVER_LESS = ("attempt", "failedAttempt", "failures")
"""Of a stage of one object, in all its life."""


def check(history: History, namespace: str, *, foreign: Collection[str] = ()) -> None:
    """I1 to I3, of everything that ever was in a namespace; nothing has to have ended.

    Args:
        history: What happened.
        namespace: Where.
        foreign: Names, as ``Job/name``, that the test itself gave to other objects.
    """
    _one_child_by_name(history, namespace, foreign)
    history.check_one_attempt_at_a_time(namespace)
    history.check_ends_stay(namespace)
    for kind in OURS:
        lives: dict[str, list[dict[str, Any]]] = {}
        for _, obj in history.of(namespace, kind):
            assert "finalizers" not in obj["metadata"], obj["metadata"]
            lives.setdefault(obj["metadata"]["uid"], []).append(obj)
        for life in lives.values():
            _nothing_is_taken_back(life)


def converged(operator: Operator, kube: KubeClient, namespace: str) -> None:
    """I5: the caches are the server's, every status is of its object's generation, and a visit writes nothing more."""
    types = (*OURS.values(), JOBS, PYTORCHJOBS)
    for type_ in types:
        selector = None if type_.kind in OURS else MANAGED
        operators.wait_for(
            lambda type_=type_, selector=selector: _cached(operator, type_.kind)
            == {(o["metadata"]["uid"], o["metadata"]["resourceVersion"])
                for o in kube.list(type_, namespace, label_selector=selector)},
            otherwise=f"the cache of {type_.plural} is not what is there",
        )  # fmt: skip
    operators.wait_for(lambda: not _busy(operator), otherwise="the queues do not become empty")
    writes = operator.manager.executor.writes
    for kind, type_ in OURS.items():
        for obj in kube.list(type_, namespace):
            name = obj["metadata"]["name"]
            assert obj["status"]["observedGeneration"] == obj["metadata"]["generation"], name
            operator.manager.visit(kind, (namespace, name))
    assert operator.manager.executor.writes == writes, "a visit to what has settled wrote something"


def left(kube: KubeClient, namespace: str) -> list[str]:
    """What is still there of objects of ours and of their children."""
    types = (*((t, None) for t in OURS.values()), *((t, MANAGED) for t in (JOBS, PYTORCHJOBS, PODS, CONFIG_MAPS)))
    return [
        f"{t.kind}/{o['metadata']['name']}" for t, selector in types
        for o in kube.list(t, namespace, label_selector=selector)
    ]  # fmt: skip


def nothing_stays(kube: KubeClient, namespace: str) -> None:
    """I6: once the user has deleted every object of ours that no other one owns, nothing is left, and nothing comes."""
    for type_ in OURS.values():
        for obj in kube.list(type_, namespace):
            if not obj["metadata"].get("ownerReferences"):
                kube.delete(type_, namespace, obj["metadata"]["name"])
    operators.wait_for(lambda: not left(kube, namespace), otherwise=lambda: f"orphans: {left(kube, namespace)}")


def _one_child_by_name(history: History, namespace: str, foreign: Collection[str]) -> None:
    """I2: no name was ever given twice, and no attempt of a task has two children."""
    for name, uids in history.created(namespace).items():
        assert len(uids) == 1 or name in foreign, f"{name} was created {len(uids)} times"
    tasks: dict[tuple[str, ...], str] = {}
    for kind in ("Job", "PyTorchJob"):
        for _, obj in history.of(namespace, kind):
            meta = obj["metadata"]
            labels = meta.get("labels") or {}
            if LABEL_NAME not in labels:
                continue
            task = tuple(v for k, v in sorted(labels.items()) if k.startswith("instructpt.dev/"))
            known = tasks.setdefault((*task, labels[LABEL_KIND]), meta["name"])
            assert known == meta["name"], f"{known} and {meta['name']} are of the same attempt"


def _nothing_is_taken_back(life: list[dict[str, Any]]) -> None:
    """I1: what a stage made stays its result; attempts and failures are never forgotten."""
    seen: dict[str, dict[str, Any]] = {}
    restarts = 0
    for obj in life:
        status = obj.get("status") or {}
        name = f"{obj['kind']} {obj['metadata']['name']}"
        assert status.get("restarts", 0) >= restarts, f"{name}: restarts went back"
        restarts = status.get("restarts", 0)
        now = {stage["step"]: stage for stage in status.get("stages", ())}
        for step, before in seen.items():
            after = now.get(step)
            assert after is not None, f"{name}: stage {step} is forgotten"
            for field in NEVER_LESS if after["key"] == before["key"] else ("attempt",):
                assert after.get(field, 0) >= before.get(field, 0), f"{name}, {step}: {field} went back"
            if "result" in before and after["key"] == before["key"]:
                assert after.get("result") == before["result"], f"{name}, {step}: another result"
        seen = now


def _cached(operator: Operator, kind: str) -> set[tuple[str, str]]:
    return {
        (o["metadata"]["uid"], o["metadata"]["resourceVersion"])
        for informer in operator.manager.caches if informer.type.kind == kind for o in informer.store.list()
    }  # fmt: skip


def _busy(operator: Operator) -> bool:
    return any(q.stats().dirty or q.stats().processing for q in operator.manager.queues.values())
