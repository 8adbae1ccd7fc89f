"""F2 and F5 of the whole operator: watches that lie to every cache, and others who write all the time."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from random import Random
from typing import TYPE_CHECKING, Any

import invariants
import operators
import pytest
from fakeapi import Mangler
from history import History
from operators import Live
from player import PYTORCHJOBS, End, attempt_of

from instructpt.plan.naming import LABEL_NAME, LABEL_STEP, LABEL_TASK, TASK_WORK
from instructpt_operator.__main__ import Operator
from instructpt_operator.runtime.client import ApiError, KubeClient, ResourceType
from instructpt_operator.runtime.informer import Informer
from instructpt_operator.types import JOBS, OURS

if TYPE_CHECKING:
    from apiserver import ApiServer

pytestmark = pytest.mark.cluster

CHANGES = ("ADDED", "MODIFIED", "DELETED")
SYN = operators.synthesis("syn")


def waits(labels: Mapping[str, str], number: int) -> End:
    """Workers of the synthesis and of the training run until they are released."""
    return End(wait=labels[LABEL_TASK] == TASK_WORK and labels[LABEL_STEP] in ("synthesis", "train"))


def lie(informer: Informer, show: Callable[[dict[str, Any]], list[dict[str, Any]]], gone: float, rng: Random) -> None:
    """From now on the cache is shown what ``show`` makes of each event, and now and then 410: list again."""
    take = informer._take

    def lying(kind: str, obj: dict[str, Any]) -> None:
        if kind not in CHANGES:
            take(kind, obj)
            return
        for event in show({"type": kind, "object": obj}):
            take(event["type"], event["object"])
        informer._version = obj["metadata"]["resourceVersion"]  # what was not shown will not be sent again
        if rng.random() < gone:
            raise ApiError(410, "Expired", "too old resource version")

    informer._take = lying  # type: ignore[method-assign]


def list_again(informer: Informer) -> None:
    """As after a 410: nothing of the gap is ever told as an event."""
    informer._version = None
    with informer._lock:
        stream = informer._stream
    if stream is not None:
        stream.close()


def informer_of(operator: Operator, kind: str) -> Informer:
    return next(i for i in operator.manager.caches if i.type.kind == kind)


def test_f2_a_run_whose_every_watch_lies_comes_to_its_exact_end(
    live: Live, kube: KubeClient, namespace: str, recorded: History
) -> None:
    """Events dropped, doubled, delayed and out of order; 410 in between; objects and children deleted in the gaps."""
    seed = int(os.environ.get("INSTRUCTPT_TEST_SEED") or Random().randrange(10**9))
    print(f"INSTRUCTPT_TEST_SEED={seed}")

    def script(labels: Mapping[str, str], number: int) -> End:
        failing = labels[LABEL_STEP] == "train" and labels[LABEL_TASK] == TASK_WORK and attempt_of(labels) == 1
        return End(1) if failing and labels[LABEL_NAME] == "trn" else waits(labels, number)

    operator, player = live(script)
    manglers = []
    for number, informer in enumerate(operator.manager.caches):
        manglers.append(Mangler(Random(seed + number)))
        lie(informer, manglers[-1], 0.05, Random(seed - number))
    objects = [operators.synthesis("taken"), operators.training("trn"), operators.pipeline("ipt")]
    for obj in (*objects, operators.synthesis("gone")):
        operators.create(kube, namespace, obj)
    relist = _now_and_then(operator)
    for name in ("taken", "gone"):
        operators.wait_for(lambda n=name: relist() or _exists(kube, JOBS, namespace, f"{n}-synthesis-1"))
    kube.delete(OURS["SynthesisJob"], namespace, "gone")
    kube.delete(JOBS, namespace, "taken-synthesis-1", propagation="Foreground")
    operators.wait_for(lambda: relist() or _exists(kube, JOBS, namespace, "taken-synthesis-2"))
    player.release("synthesis")
    player.release("train")
    for obj in objects:
        operators.wait_for(
            lambda o=obj: relist() or operators.is_true(operators.get(kube, namespace, o), "Complete"), seconds=120,
            otherwise=lambda o=obj: operators.get(kube, namespace, o),
        )  # fmt: skip
    for obj, attempt, failures in ((objects[0], 2, 0), (objects[1], 2, 1)):
        stage = operators.get(kube, namespace, obj)["status"]["stages"][-1]  # type: ignore[index]
        assert (stage["attempt"], stage["failures"]) == (attempt, failures), obj["metadata"]["name"]
    for informer in operator.manager.caches:
        list_again(informer)
    invariants.check(recorded, namespace)
    invariants.converged(operator, kube, namespace)
    assert not _exists(kube, JOBS, namespace, "gone-synthesis-2")
    assert "Job/gone-synthesis-2" not in recorded.created(namespace)
    assert all(sum(m.counts[fate] for m in manglers) for fate in ("dropped", "doubled", "delayed"))
    invariants.nothing_stays(kube, namespace)


def _now_and_then(operator: Operator) -> Callable[[], None]:
    """Every cache lists again each second: an event that is dropped last would be missed until the watch ends."""
    last = time.monotonic()

    def relist() -> None:
        nonlocal last
        if time.monotonic() - last > 1.0:
            last = time.monotonic()
            for informer in operator.manager.caches:
                list_again(informer)

    return relist


def _exists(kube: KubeClient, type_: ResourceType, namespace: str, name: str) -> bool:
    return any(o["metadata"]["name"] == name for o in kube.list(type_, namespace))


def test_f2_a_ghost_of_an_object_gets_nothing_and_goes_with_the_next_list(
    live: Live, kube: KubeClient, namespace: str, recorded: History
) -> None:
    operator, _ = live(waits)
    operators.create(kube, namespace, SYN)
    operators.wait_condition(kube, namespace, SYN, "Running")
    ours = informer_of(operator, "SynthesisJob")
    lie(ours, lambda event: [], 0.0, Random(0))
    kube.delete(OURS["SynthesisJob"], namespace, "syn")
    operators.wait_for(lambda: informer_of(operator, "Job").store.get(namespace, "syn-synthesis-1") is None)
    operators.wait_for(lambda: invariants.left(kube, namespace) == [])
    assert ours.store.get(namespace, "syn") is not None, "no ghost, no test"
    for _ in range(3):  # it has no child and no end: the next attempt seems due
        operator.manager.visit("SynthesisJob", (namespace, "syn"))
    assert invariants.left(kube, namespace) == []
    assert recorded.created(namespace).keys() == {"Job/syn-synthesis-1"}
    relists = ours.stats.relists
    list_again(ours)
    operators.wait_for(lambda: ours.store.get(namespace, "syn") is None)
    assert ours.stats.relists == relists + 1


@contextmanager
def storm(client: KubeClient, targets: list[tuple[ResourceType, str, str]]) -> Iterator[dict[str, int]]:
    """Somebody else edits annotations and labels of each target fifty times a second, if it is there."""
    over, edits = threading.Event(), dict.fromkeys((name for _, _, name in targets), 0)

    def blow() -> None:
        while not over.wait(0.02):
            for type_, namespace, name in targets:
                value = str(edits[name] + 1)
                meta = {"annotations": {"example.com/edits": value}, "labels": {"example.com/edits": value}}
                try:
                    client.merge_patch(type_, namespace, name, {"metadata": meta})
                    edits[name] += 1
                except ApiError as error:
                    if error.status != 404:
                        raise

    thread = threading.Thread(target=blow)
    thread.start()
    try:
        yield edits
    finally:
        over.set()
        thread.join()


def test_f5_a_storm_of_edits_on_objects_and_children_changes_no_run(
    live: Live, pytorchjobs: ApiServer, kube: KubeClient, namespace: str, recorded: History,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    operator, player = live(waits)
    writer = KubeClient.connect(str(pytorchjobs.kubeconfig), qps=1000, burst=1000)
    syn, trn = operators.synthesis("syn"), operators.training("trn")
    targets = [
        (OURS["SynthesisJob"], namespace, "syn"),
        (OURS["TrainingJob"], namespace, "trn"),
        (JOBS, namespace, "syn-synthesis-2"),
        (PYTORCHJOBS, namespace, "trn-train-1"),
    ]
    for obj in (syn, trn):
        operators.create(kube, namespace, obj)
    with storm(writer, targets) as edits:
        operators.wait_condition(kube, namespace, syn, "Running")
        kube.merge_patch(OURS["SynthesisJob"], namespace, "syn", {"spec": {"suspend": True, "backoffLimit": 7}})
        operators.wait_condition(kube, namespace, syn, "Suspended")
        kube.merge_patch(OURS["SynthesisJob"], namespace, "syn", {"spec": {"suspend": False}})
        operators.wait_for(lambda: min(edits.values()) > 50)
        children = {name: _edits(kube.get(type_, namespace, name)) for type_, _, name in targets[2:]}
        assert all(int(value) > 0 for value in children.values())
        player.release("synthesis")
        player.release("train")
        for obj in (syn, trn):
            operators.wait_condition(kube, namespace, obj, "Complete")
    conflicts = operator._client.calls["patch", 409]
    print(f"{sum(edits.values())} edits, {conflicts} conflicts, {operator.manager.executor.writes}")
    for obj, attempt in ((syn, 2), (trn, 1)):
        done = operators.get(kube, namespace, obj)
        assert done is not None
        assert _edits(done) == str(edits[obj["metadata"]["name"]]) == done["metadata"]["labels"]["example.com/edits"]
        stage = done["status"]["stages"][-1]
        assert (stage["attempt"], stage["failures"]) == (attempt, 0)
    assert operators.get(kube, namespace, syn)["spec"]["backoffLimit"] == 7  # type: ignore[index]
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR] == []
    assert not any("Traceback" in (r.exc_text or "") for r in caplog.records)
    invariants.check(recorded, namespace)
    invariants.converged(operator, kube, namespace)
    invariants.nothing_stays(kube, namespace)


def _edits(obj: Mapping[str, Any]) -> str:
    return str(obj["metadata"]["annotations"]["example.com/edits"])
