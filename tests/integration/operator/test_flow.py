"""Whole runs of all five kinds on a real API server with the real Job controller; the pods' work is played."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import operators
import pytest
from player import Player

from instructpt_operator.runtime.client import KubeClient
from instructpt_operator.types import JOBS

pytestmark = pytest.mark.cluster


@pytest.fixture
def client(apiserver: Any) -> KubeClient:
    return KubeClient.connect(str(apiserver.kubeconfig), qps=500, burst=500)


@pytest.fixture
def live(apiserver: Any, namespace: str, client: KubeClient) -> Iterator[Player]:
    operators.install_pytorchjob(apiserver)
    with operators.running(apiserver.kubeconfig, namespace), Player(client, namespace) as player:
        yield player
        assert player.errors == []


@pytest.mark.parametrize(
    "obj",
    [operators.corpus("raw"), operators.synthesis("syn"), operators.training("trn"), operators.pipeline("ipt")],
    ids=lambda o: o["kind"],
)
def test_every_kind_runs_to_its_end(live: Player, client: KubeClient, namespace: str, obj: dict[str, Any]) -> None:
    operators.create(client, namespace, obj)
    done = operators.wait_condition(client, namespace, obj, "Complete")
    status = done["status"]
    assert status["phase"] == "Complete"
    assert all("result" in stage for stage in status["stages"])
    assert not operators.is_true(done, "Failed")
    assert status["output"]["digest"].startswith("sha256:")
    for job in client.list(JOBS, namespace):
        owner = job["metadata"]["ownerReferences"][0]
        assert owner["controller"] is True
        assert owner["blockOwnerDeletion"] is True
