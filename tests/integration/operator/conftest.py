"""Clients and played pods for the tests of the whole operator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import history
import operators
import pytest
from operators import Live
from player import Player, Script, all_well

from instructpt_operator.__main__ import Operator
from instructpt_operator.runtime.client import KubeClient

if TYPE_CHECKING:
    from apiserver import ApiServer


@pytest.fixture(scope="session")
def pytorchjobs(apiserver: ApiServer) -> ApiServer:
    """The API server, with the launcher's CRD."""
    operators.install_pytorchjob(apiserver)
    return apiserver


@pytest.fixture(scope="session")
def kube(apiserver: ApiServer) -> KubeClient:
    """The admin's client."""
    return KubeClient.connect(str(apiserver.kubeconfig), qps=1000, burst=1000)


@pytest.fixture
def live(pytorchjobs: ApiServer, namespace: str, kube: KubeClient) -> Iterator[Live]:
    """Starts the operator in this process, and pods that end as a script says."""
    with ExitStack() as stack:

        def begin(script: Script = all_well, **settings: Any) -> tuple[Operator, Player]:
            operator = stack.enter_context(operators.running(pytorchjobs.kubeconfig, namespace, **settings))
            return operator, stack.enter_context(_played(kube, namespace, script))

        yield begin


def _played(kube: KubeClient, namespace: str, script: Script) -> Player:
    return Player(kube, namespace, script)


@pytest.fixture
def recorded(pytorchjobs: ApiServer) -> Iterator[history.History]:
    """What happened, by the API server's watch."""
    with history.recorded(Path(pytorchjobs.kubeconfig)) as found:
        yield found
