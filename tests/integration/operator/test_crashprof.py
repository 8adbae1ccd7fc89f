"""F1: the operator is killed before and after every write of a whole run, and a new one goes on.

Operators are processes; the API server, Job controller and garbage collector are real; pods are played.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import crashing
import operators
import pytest
from history import History
from player import CONFIG_MAPS, PODS, PYTORCHJOBS, Player

from instructpt.plan.naming import MANAGED_BY, OPERATOR
from instructpt_operator.runtime.client import KubeClient, ResourceType
from instructpt_operator.types import JOBS

if TYPE_CHECKING:
    from apiserver import ApiServer

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

AT_ONCE = 5
NAMESPACES = ResourceType(api_version="v1", kind="Namespace", plural="namespaces", namespaced=False)


@dataclass(frozen=True)
class End:
    """What a run left."""

    children: dict[str, int]
    writes: list[str]
    phase: str
    output: dict[str, Any]
    stages: list[dict[str, Any]]


@dataclass
class Bench:
    """Runs one object in a namespace of its own, with an operator that dies once and one that goes on."""

    server: ApiServer
    kube: KubeClient
    history: History
    forker: crashing.Forker
    folder: Path
    obj: dict[str, Any]

    def run(self, kill: str) -> End:
        """From creation to the end, then delete the object while no operator is there."""
        namespace = f"crash-{self.obj['metadata']['name']}-{kill.replace(':', '-') or 'none'}"
        self.kube.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        import time; t0=time.monotonic()
        notes = self.folder / f"{namespace}.notes"
        operators.create(self.kube, namespace, self.obj)
        if kill:
            self._die(namespace, notes, kill)
        t1=time.monotonic()
        last = self.forker.start(self.server.kubeconfig, namespace, notes)
        try:
            done = operators.wait_condition(self.kube, namespace, self.obj, "Complete")
        finally:
            last.kill()
        import time; t2=time.monotonic()
        end = self._end(namespace, done, notes)
        t3=time.monotonic()
        self._delete(namespace)
        print(kill, [round(x-t0,1) for x in (t1,t2,t3,time.monotonic())], notes.read_text().replace(chr(10)," | "))
        return end

    def _die(self, namespace: str, notes: Path, kill: str) -> None:
        first = self.forker.start(self.server.kubeconfig, namespace, notes, kill)
        operators.wait_for(first.has_ended, otherwise=lambda: f"{kill} was not reached: {notes.read_text()}")
        first.kill()
        point, number, *_ = notes.read_text().splitlines()[-1].split()
        assert f"{point}:{number}" == kill, "it died elsewhere"

    def _end(self, namespace: str, done: dict[str, Any], notes: Path) -> End:
        status = done["status"]
        assert status["observedGeneration"] == done["metadata"]["generation"]
        assert "finalizers" not in done["metadata"]
        self.history.check_ends_stay(namespace)
        self.history.check_one_attempt_at_a_time(namespace)
        return End(
            children={name: len(uids) for name, uids in self.history.created(namespace).items()},
            writes=[line for line in notes.read_text().splitlines() if line.startswith("after")],
            phase=status["phase"],
            output=status["output"],
            stages=[{k: s.get(k) for k in ("step", "attempt", "failures", "result")} for s in status["stages"]],
        )

    def _delete(self, namespace: str) -> None:
        type_ = operators.OURS[self.obj["kind"]]
        self.kube.delete(type_, namespace, self.obj["metadata"]["name"])
        operators.wait_for(lambda: not self.left(namespace), otherwise=lambda: f"orphans: {self.left(namespace)}")
        self.kube.delete(NAMESPACES, None, namespace)

    def left(self, namespace: str) -> list[str]:
        """I6: what is still there of the object and its children."""
        types = (operators.OURS[self.obj["kind"]], JOBS, PYTORCHJOBS, PODS, CONFIG_MAPS)
        managed = f"{MANAGED_BY}={OPERATOR}"
        return [
            f"{o['kind']}/{o['metadata']['name']}"
            for t in types
            for o in self.kube.list(t, namespace, label_selector=None if t is types[0] else managed)
        ]


@pytest.fixture(scope="module")
def fork(tmp_path_factory: pytest.TempPathFactory) -> Iterator[crashing.Forker]:
    log = tmp_path_factory.mktemp("crash") / "operators.log"
    with crashing.forker(log) as found:
        yield found
    assert "Traceback" not in log.read_text()


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "obj", [operators.synthesis("syn", parallelism=1), operators.training("trn", nodes=1)], ids=lambda o: o["kind"]
)
def test_f1_operator_killed_before_and_after_every_write_of_a_run(
    pytorchjobs: ApiServer, kube: KubeClient, recorded: History, fork: crashing.Forker, tmp_path: Path,
    obj: dict[str, Any],
) -> None:  # fmt: skip
    bench = Bench(pytorchjobs, kube, recorded, fork, tmp_path, obj)
    with Player(kube, None) as player, ThreadPoolExecutor(AT_ONCE) as pool:
        whole = bench.run("")
        assert set(whole.children.values()) == {1}
        points = [f"{point}:{n + 1}" for n in range(len(whole.writes)) for point in crashing.POINTS]
        ends = dict(zip(points, pool.map(bench.run, points), strict=True))
    assert player.errors == []
    for point, end in ends.items():
        assert end.children == whole.children, point
        assert (end.phase, end.output, end.stages) == (whole.phase, whole.output, whole.stages), point
    assert len(points) >= 20
