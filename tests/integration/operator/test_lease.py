"""F6 and F7 with real processes on a real API server: SIGKILL, SIGTERM, SIGSTOP, and a server that stops answering."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from instructpt_operator.runtime.client import ApiError, KubeClient
from instructpt_operator.runtime.lease import LEASES, LeaderElector

if TYPE_CHECKING:
    from apiserver import ApiServer

pytestmark = pytest.mark.cluster

LEASE, DEADLINE, RETRY = 3, 2.0, 0.3

# A replica: leads where it can, and while it may write notes each write, which goes to the API server, in a file.
REPLICA = f"""
import os, signal, sys, time
from instructpt_operator.runtime.client import KubeClient, ResourceType
from instructpt_operator.runtime.lease import LeaderElector, boottime

kubeconfig, namespace, identity, path = sys.argv[1:]
maps = ResourceType(api_version="v1", kind="ConfigMap", plural="configmaps")
client, notes = KubeClient.connect(kubeconfig), open(path, "a", buffering=1)

def lead():
    while True:
        if elector.may_write():
            notes.write(f"{{boottime()}}\\n")
            client.merge_patch(maps, namespace, "written", {{"data": {{"by": identity}}}})
        time.sleep(0.02)

elector = LeaderElector(
    KubeClient.connect(kubeconfig, timeout_seconds=3, connections=2), namespace=namespace, name="operator",
    identity=identity, on_started=lead, lease_seconds={LEASE}, renew_deadline_seconds={DEADLINE},
    retry_seconds={RETRY},
)

def stop(number, frame):
    elector.release()
    os._exit(0)

signal.signal(signal.SIGTERM, stop)
elector.step()
open(path + ".looked", "w").close()
elector.start()
while True:
    time.sleep(1)
"""


class Replica:
    def __init__(self, server: ApiServer, namespace: str, name: str, folder: Path) -> None:
        self.name, self.notes = name, folder / name
        self.notes.touch()
        with (folder / f"{name}.log").open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", REPLICA, str(server.kubeconfig), namespace, name, str(self.notes)],
                env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
                stderr=log,
            )

    def writes(self) -> list[float]:
        return [float(line) for line in self.notes.read_text().splitlines()]

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def until(holds: Callable[[], object], seconds: float = 30) -> float:
    """Wait for a condition; returns how long that took."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < seconds, "waited too long"
        time.sleep(0.02)
    return time.monotonic() - began


@pytest.fixture
def pair(apiserver: ApiServer, namespace: str, tmp_path: Path) -> Iterator[tuple[Replica, Replica]]:
    """A leader that writes, and a candidate that waits."""
    body = {"metadata": {"name": "written"}}
    assert apiserver.request("POST", f"/api/v1/namespaces/{namespace}/configmaps", body)[0] == 201
    replicas = [Replica(apiserver, namespace, "a", tmp_path)]
    try:
        until(replicas[0].writes)
        replicas.append(Replica(apiserver, namespace, "b", tmp_path))
        until((tmp_path / "b.looked").exists)
        yield replicas[0], replicas[1]
    finally:
        apiserver.resume()
        for replica in replicas:
            replica.end()


def holder(server: ApiServer, namespace: str) -> tuple[str, int]:
    status, lease = server.request("GET", LEASES.path(namespace, "operator"))
    assert status == 200
    return lease["spec"]["holderIdentity"], lease["spec"]["leaseTransitions"]


def test_f6_killed_leader_is_followed(apiserver: ApiServer, namespace: str, pair: tuple[Replica, Replica]) -> None:
    a, b = pair
    assert b.writes() == []
    a.signal(signal.SIGKILL)
    took = until(b.writes)
    assert took > LEASE - DEADLINE  # a candidate has seen a live leader within its deadline
    assert holder(apiserver, namespace) == ("b", 1)
    assert max(a.writes()) < min(b.writes())


def test_f6_terminated_leader_hands_over(apiserver: ApiServer, namespace: str, pair: tuple[Replica, Replica]) -> None:
    a, b = pair
    a.signal(signal.SIGTERM)
    assert a.process.wait(10) == 0
    until(b.writes, LEASE - RETRY)  # well before the lease would have run out
    assert holder(apiserver, namespace) == ("b", 1)
    assert max(a.writes()) < min(b.writes())


def test_f6_frozen_leader_writes_nothing_afterwards(
    apiserver: ApiServer, namespace: str, pair: tuple[Replica, Replica]
) -> None:
    a, b = pair
    a.signal(signal.SIGSTOP)
    until(b.writes)
    before = len(a.writes())
    a.signal(signal.SIGCONT)
    assert a.process.wait(10) == 1
    assert len(a.writes()) == before
    assert b.process.poll() is None
    assert holder(apiserver, namespace)[0] == "b"


def test_f7_leader_that_gets_no_answer_ends(apiserver: ApiServer, pair: tuple[Replica, Replica]) -> None:
    a, b = pair
    apiserver.pause()
    try:
        assert a.process.wait(10) == 1
        last = a.writes()[-1]
    finally:
        apiserver.resume()
    until(b.writes)
    assert last < b.writes()[0]


def test_lease_is_kept_and_released_on_a_real_server(apiserver: ApiServer, namespace: str) -> None:
    client = KubeClient.connect(str(apiserver.kubeconfig), timeout_seconds=3, connections=2)
    ended: list[int] = []
    a, b = (
        LeaderElector(
            client, namespace=namespace, name="operator", identity=name, on_started=lambda: None, exit=ended.append
        )
        for name in "ab"
    )
    for _ in range(3):
        a.step()
        b.step()
    assert (a.may_write(), b.may_write()) == (True, False)
    assert a.release()
    assert holder(apiserver, namespace) == ("", 0)
    b.step()
    assert b.may_write()
    assert holder(apiserver, namespace) == ("b", 1)
    a.step()
    client.request("DELETE", LEASES.path(namespace, "operator"))
    b.step()
    assert ended == [1]
    with pytest.raises(ApiError):
        client.get(LEASES, namespace, "operator")
