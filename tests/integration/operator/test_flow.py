"""Whole runs of all kinds on a real API server with the real Job controller; the pods' work is played."""

from __future__ import annotations

from typing import Any

import operators
import pytest
from operators import Live
from player import CONFIG_MAPS, PYTORCHJOBS

from instructpt.plan.naming import MANAGED_BY, OPERATOR
from instructpt_operator.runtime.client import KubeClient
from instructpt_operator.types import JOBS, OURS

pytestmark = pytest.mark.cluster

RUNS: list[tuple[dict[str, Any], int, int]] = [
    (operators.corpus("raw"), 4, 10),
    (operators.synthesis("syn"), 4, 10),
    (operators.training("trn"), 12, 28),
    (operators.pipeline("ipt"), 43, 130),
]
"""An object, how many children are created for it, and how many writes all of it may take at most."""


@pytest.mark.parametrize(("obj", "creates", "most"), RUNS, ids=[obj["kind"] for obj, *_ in RUNS])
def test_every_kind_runs_to_its_end_and_r17_its_children_are_owned(
    live: Live, kube: KubeClient, namespace: str, obj: dict[str, Any], creates: int, most: int
) -> None:
    operator, player = live()
    operators.create(kube, namespace, obj)
    done = operators.wait_condition(kube, namespace, obj, "Complete")
    status = done["status"]
    assert status["phase"] == ("Ready" if obj["kind"] == "Corpus" else "Complete")
    assert all("result" in stage for stage in status["stages"])
    assert not operators.is_true(done, "Failed")
    assert status["output"]["digest"].startswith("sha256:")
    assert player.errors == []
    writes = operator.manager.executor.writes
    assert writes["create"] == creates
    assert writes["delete"] == writes["patch"] == 0
    assert writes.total() <= most
    children = [
        child
        for type_ in (JOBS, PYTORCHJOBS, CONFIG_MAPS)
        for child in kube.list(type_, namespace, label_selector=f"{MANAGED_BY}={OPERATOR}")
    ]
    assert children
    ours = [o for type_ in OURS.values() for o in kube.list(type_, namespace)]
    for child in (*children, *(o for o in ours if o["metadata"]["uid"] != done["metadata"]["uid"])):
        (owner,) = child["metadata"]["ownerReferences"]
        assert owner["controller"] is True
        assert owner["blockOwnerDeletion"] is True
        assert owner["uid"] in {o["metadata"]["uid"] for o in ours}
    assert all("finalizers" not in o["metadata"] for o in (*ours, *children))
