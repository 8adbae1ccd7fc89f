"""The run that tests/e2e/test_flow.py follows, what a user sees of it, and what its storage holds."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cluster import processes
from cluster.layout import S3_ENDPOINT, Layout

from instructpt.api.base import Access
from instructpt.errors import NotFoundError
from instructpt.storage import Store, open_store

SYSTEM, OPERATOR, LAB, NAME = "instructpt-system", "instructpt-operator", "lab", "quickstart"


@dataclass
class Flow:
    """The run, and what was seen of it so far."""

    layout: Layout
    marks: dict[str, float] = field(default_factory=dict)
    failed: str = ""
    killed_shard: str = ""

    def kubectl(self, *args: str, stdin: str | None = None, namespace: str = LAB) -> str:
        return self.layout.kubectl("-n", namespace, *args, stdin=stdin)

    def get(self, *args: str, namespace: str = LAB) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.kubectl("get", *args, "-o", "json", namespace=namespace))
        return answer

    def object(self, kind: str, name: str) -> dict[str, Any]:
        try:
            return self.get(kind, name)
        except RuntimeError:
            return {}

    def phase(self, kind: str, name: str) -> str:
        return str(self.object(kind, name).get("status", {}).get("phase", ""))

    def stage(self, kind: str, name: str, step: str) -> dict[str, Any]:
        stages = self.object(kind, name)["status"]["stages"]
        found: dict[str, Any] = next(s for s in stages if s["step"] == step)
        return found

    def pods(self, **labels: str) -> list[dict[str, Any]]:
        selector = ",".join(f"instructpt.dev/{k}={v}" for k, v in labels.items())
        found: list[dict[str, Any]] = self.get("pods", "-l", selector)["items"]
        return found

    def wait(self, what: str, check: Callable[[], Any], seconds: float) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := check()):
            ended = [c for c in self._conditions() if c["type"] == "Failed" and c["status"] == "True"]
            if ended or time.monotonic() > deadline:
                pytest.fail(f"{what}: {'the run failed' if ended else f'not within {seconds:.0f} s'}\n{self.picture()}")
            time.sleep(0.5)
        self.marks[what] = time.monotonic()
        return found

    def picture(self) -> str:
        """What a user would look at."""
        parts = [
            self.kubectl("get", "ipt,corp,syn,trn,evl,jobs,pytorchjobs,pods", "-o", "wide"),
            json.dumps(self._conditions(), indent=1),
            self.kubectl("get", "events", "--sort-by=.lastTimestamp")[-6000:],
            self.kubectl("logs", "-l", "app.kubernetes.io/name=instructpt", "--tail=60", namespace=SYSTEM),
        ]
        return "\n".join(parts)

    def store(self, uri: str) -> Store:
        return open_store(uri, access=Access(endpoint=S3_ENDPOINT))

    def logs(self, pod: str, container: str) -> str:
        """All of it; empty where the container has not started."""
        try:
            return self.kubectl("logs", pod, "-c", container, "--tail=-1")
        except RuntimeError:
            return ""

    def _conditions(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.object("ipt", NAME).get("status", {}).get("conditions", [])
        return found


# ------------------------------------------------------------------ operator


def kill_leader(flow: Flow) -> None:
    """SIGKILL to the operator's process that leads: its container starts again, and meanwhile another leads."""
    lease = flow.get("lease", OPERATOR, namespace=SYSTEM)["spec"]
    holder, terms = lease["holderIdentity"], lease.get("leaseTransitions", 0)
    name = holder.rpartition("_")[0]
    pod = flow.get("pod", name, namespace=SYSTEM)
    before = _restarts(pod)
    processes.kill(processes.main_process(pod, "operator"))

    def leader() -> str:
        now = flow.get("lease", OPERATOR, namespace=SYSTEM)["spec"]
        found = str(now.get("holderIdentity", ""))
        return found if found != holder and now.get("leaseTransitions", 0) > terms else ""

    assert flow.wait(f"another leader after {name} was killed", leader, 60).rpartition("_")[0] != name
    flow.wait(f"{name} runs again", lambda: _restarts(flow.get("pod", name, namespace=SYSTEM)) == before + 1, 60)
    again = flow.get("pod", name, namespace=SYSTEM)["status"]["containerStatuses"][0]
    assert again["lastState"]["terminated"]["exitCode"] == 137, again


def _restarts(pod: Mapping[str, Any]) -> int:
    return sum(int(s["restartCount"]) for s in pod["status"].get("containerStatuses", ()))


def operator_processes() -> Iterator[tuple[int, float]]:
    """Of each process of the operator: MiB resident, and seconds of CPU so far."""
    ticks = os.sysconf("SC_CLK_TCK")
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
            status = (folder / "status").read_text()
            times = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if any(part.endswith(b"/instructpt-operator") for part in command[:2]):
            resident = int(re.search(r"VmRSS:\s+(\d+)", status)[1]) // 1024  # type: ignore[index]
            yield resident, (int(times[11]) + int(times[12])) / ticks


# -------------------------------------------------------------------- ledger


@dataclass(frozen=True, slots=True)
class Lease:
    """What ``leases/<shard>/<epoch>`` says."""

    shard: str
    epoch: int
    worker: str


class LedgerView:
    """The ledger of a synthesis as it lies on the storage, read without the product's own code for it."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def leases(self) -> list[Lease]:
        found = []
        for key in self._keys("leases"):
            *_, shard, epoch = key.split("/")
            with contextlib.suppress(NotFoundError):  # it was released meanwhile
                found.append(Lease(shard, int(epoch), json.loads(self._store.get(key))["worker"]))
        return found

    def commits(self) -> dict[str, str]:
        """Name of the data object, by micro-shard."""
        return {k.rpartition("/")[2]: json.loads(self._store.get(k))["object"] for k in self._keys("commits")}

    def data(self, shard: str) -> list[str]:
        """Every data object that was written for a micro-shard."""
        return [key for key in self._keys("data") if key.split("/")[-2] == shard]

    def _keys(self, part: str) -> list[str]:
        return [info.key for info in self._store.list() if f"/{part}/" in f"/{info.key}"]


def kill_mid_shard(flow: Flow, ledger: LedgerView, name: str) -> Lease:
    """SIGKILL to a worker that holds a lease and has not committed; returns the lease.

    A worker takes its leases once its engine is ready, several at a time: what is leased is under way. The worker is
    held still while the ledger is read, so that it cannot commit between the look and the kill.
    """

    def try_one() -> Lease | None:
        committed = ledger.commits().keys()
        held = [lease for lease in ledger.leases() if lease.shard not in committed]
        running = {p["metadata"]["name"]: p for p in flow.pods(name=name, task="work") if _runs(p)}
        for lease in held:
            if lease.worker in running:
                pid = processes.main_process(running[lease.worker], "worker")
                with processes.stopped(pid):
                    time.sleep(1.0)  # what was on its way to the storage arrives
                    latest = max(one.epoch for one in ledger.leases() if one.shard == lease.shard)
                    if lease.shard not in ledger.commits() and latest == lease.epoch:
                        processes.kill(pid)
                        return lease
        return None

    found: Lease = flow.wait("a worker is killed in the middle of a micro-shard", try_one, 300)
    return found


def _runs(pod: Mapping[str, Any]) -> bool:
    return any("running" in s.get("state", {}) for s in pod["status"].get("containerStatuses", ()))
