"""F1 and F11: the operator is killed before and after every write of a run; a new one goes on, or the object goes.

Operators are processes; the API server, Job controller and garbage collector are real; pods are played.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import crashing
import invariants
import operators
import pytest
from history import History
from player import CONFIG_MAPS, PODS, PYTORCHJOBS, Player, Script, all_well, attempt_of
from player import End as Ends

from instructpt.plan.naming import LABEL_STEP, LABEL_TASK, MANAGED_BY, OPERATOR, TASK_WORK
from instructpt_operator.runtime.client import KubeClient, ResourceType
from instructpt_operator.types import JOBS

if TYPE_CHECKING:
    from apiserver import ApiServer

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

AT_ONCE = 8
NAMESPACES = ResourceType(api_version="v1", kind="Namespace", plural="namespaces", namespaced=False)


@dataclass(frozen=True)
class End:
    """What a run left."""

    children: dict[str, int]
    points: list[str]
    died: bool
    phase: str
    restarts: int
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
        """From creation to the end; afterwards no operator is there."""
        namespace = self.namespace(kill)
        self.kube.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        notes = self.folder / f"{namespace}.notes"
        operators.create(self.kube, namespace, self.obj)
        died = bool(kill) and self._die(namespace, notes, kill)
        last = self.forker.start(self.server.kubeconfig, namespace, notes)
        try:
            done = operators.wait_for(lambda: self._complete(namespace), every=0.25, otherwise=notes.read_text)
            if not kill:  # its events come after the status
                operators.wait_for(lambda: _is_quiet(notes), otherwise=notes.read_text)
        finally:
            last.kill()
        return self._end(namespace, done, notes, died=died)

    def _complete(self, namespace: str) -> dict[str, Any] | None:
        """The object once it is Complete; asks nobody, since many wait at once."""
        seen = self.history.of(namespace, self.obj["kind"])
        return seen[-1][1] if seen and operators.is_true(seen[-1][1], "Complete") else None

    def namespace(self, kill: str, prefix: str = "crash") -> str:
        """Of a run."""
        return f"{prefix}-{self.obj['metadata']['name']}-{kill.replace(':', '-') or 'none'}"

    def _die(self, namespace: str, notes: Path, kill: str) -> bool:
        """Run until it kills itself. With other timing there may be a write less, so it may also come to its end."""
        first = self.forker.start(self.server.kubeconfig, namespace, notes, kill)
        operators.wait_for(
            lambda: first.has_ended() or (self._complete(namespace) and _is_quiet(notes)),
            every=0.02,
            otherwise=notes.read_text,
        )
        died = first.has_ended()
        first.kill()
        point, number, *_ = notes.read_text().splitlines()[-1].split()
        assert not died or f"{point}:{number}" == kill, "it died elsewhere"
        return died

    def _end(self, namespace: str, done: dict[str, Any], notes: Path, *, died: bool) -> End:
        status = done["status"]
        assert status["observedGeneration"] == done["metadata"]["generation"]
        assert "finalizers" not in done["metadata"]
        invariants.check(self.history, namespace)
        return End(
            children={name: len(uids) for name, uids in self.history.created(namespace).items()},
            points=[":".join(line.split()[:2]) for line in notes.read_text().splitlines()],
            died=died,
            phase=status["phase"],
            restarts=status["restarts"],
            output=status["output"],
            stages=[{k: s.get(k) for k in ("step", "attempt", "failures", "result")} for s in status["stages"]],
        )

    def run_deleted(self, kill: str) -> None:
        """The object is deleted where the operator dies, and a new operator comes while its children still leave."""
        namespace = self.namespace(kill, "gone")
        self.kube.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        notes = self.folder / f"{namespace}.notes"
        made = operators.create(self.kube, namespace, self.obj)
        self._die(namespace, notes, kill)
        written = len(notes.read_text().splitlines())
        self.kube.delete(operators.OURS[self.obj["kind"]], namespace, made["metadata"]["name"])
        last = self.forker.start(self.server.kubeconfig, namespace, notes)
        try:
            operators.wait_for(
                lambda: Path(f"{notes}.{last.pid}").exists() and not self.left(namespace), every=0.25,
                otherwise=lambda: f"orphans: {self.left(namespace)}",
            )  # fmt: skip
            assert len(notes.read_text().splitlines()) == written, "it wrote for what is gone"
        finally:
            last.kill()
        invariants.check(self.history, namespace)
        self.kube.delete(NAMESPACES, None, namespace)

    def delete(self, kill: str) -> None:
        """Delete the object of a run while no operator is there: nothing of it may stay."""
        namespace = self.namespace(kill)
        self.kube.delete(operators.OURS[self.obj["kind"]], namespace, self.obj["metadata"]["name"])
        operators.wait_for(
            lambda: not self.left(namespace), every=0.5, otherwise=lambda: f"orphans: {self.left(namespace)}"
        )
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


def _is_quiet(notes: Path) -> bool:
    """Whether an operator has noted no write for two seconds."""
    return time.time() - notes.stat().st_mtime > 2.0


@pytest.fixture(scope="module")
def fork(tmp_path_factory: pytest.TempPathFactory) -> Iterator[crashing.Forker]:
    log = tmp_path_factory.mktemp("crash") / "operators.log"
    with crashing.forker(log) as found:
        yield found
    assert "Traceback" not in log.read_text()


def first_training_fails(labels: Mapping[str, str], number: int) -> Ends:
    """The first attempt at training ends with exit code 1, all else is well."""
    is_training = (labels[LABEL_STEP], labels[LABEL_TASK]) == ("train", TASK_WORK)
    return Ends(1) if is_training and attempt_of(labels) == 1 else Ends()


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("obj", "script", "least"),
    [
        (operators.synthesis("syn", parallelism=1), all_well, 16),
        (operators.training("trn", nodes=1, tokenizer={"from": "s3://lab/model"}), first_training_fails, 30),
    ],
    ids=["SynthesisJob", "TrainingJob"],
)
def test_f1_operator_killed_before_and_after_every_write_of_a_run(
    pytorchjobs: ApiServer, kube: KubeClient, recorded: History, fork: crashing.Forker, tmp_path: Path,
    obj: dict[str, Any], script: Script, least: int,
) -> None:  # fmt: skip
    bench = Bench(pytorchjobs, kube, recorded, fork, tmp_path, obj)
    with Player(kube, None, script) as player, ThreadPoolExecutor(AT_ONCE) as pool:
        whole = bench.run("")
        ends = dict(zip(whole.points, pool.map(bench.run, whole.points), strict=True))
        list(pool.map(bench.delete, ["", *whole.points]))
    assert player.errors == []
    assert set(whole.children.values()) == {1}
    for point, end in ends.items():
        assert end.children == whole.children, point
        assert (end.phase, end.restarts) == (whole.phase, whole.restarts), point
        assert (end.output, end.stages) == (whole.output, whole.stages), point
    assert sum(end.died for end in ends.values()) >= max(least, 0.9 * len(ends))


@pytest.mark.timeout(600)
def test_f11_object_deleted_at_every_point_where_the_operator_can_die(
    pytorchjobs: ApiServer, kube: KubeClient, recorded: History, fork: crashing.Forker, tmp_path: Path
) -> None:
    bench = Bench(pytorchjobs, kube, recorded, fork, tmp_path, operators.synthesis("syn", parallelism=1))
    with Player(kube, None, all_well) as player, ThreadPoolExecutor(AT_ONCE) as pool:
        points = bench.run("").points
        list(pool.map(bench.run_deleted, points))
    assert player.errors == []
    assert len(points) >= 16
