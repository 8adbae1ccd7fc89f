"""What a user meets beside the main flow, on the real cluster: a row for each way to get stuck or to fail, then
suspension, time to live, edits, deletion, and an operator that is away.

The operator is the one of this checkout, in this process, with the intervals of the chart. All rows are applied at
once, as on a busy cluster. Every row's condition, reason and message is compared with the one in the docs, or written
there where ``INSTRUCTPT_WRITE_DOCS=1`` (then run tools/lifecycle_docs.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import lifecycle
import operators
import pytest
from cluster.layout import NODE, S3_ENDPOINT, Layout
from lifecycle import EVENTS, SHOWN_SECONDS, Case, Watcher
from lifecycle_cases import CASES, GANG, GANG_CASES, GANG_EDITS, NOWHERE, ORDER, corpus, make_secret, synthesis
from lifecycle_world import PAUSE, World, running

from instructpt.cluster.meta import step_label
from instructpt.plan.naming import LABEL_STEP, LABEL_TASK, TASK_FINALIZE
from instructpt_operator.runtime.client import ApiError

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

GPU = "nvidia.com/gpu"
STUCK = {"podTemplate": {"image": NOWHERE, "imagePullPolicy": "Never"}}


@pytest.fixture(scope="module")
def world(bed_layout: Layout) -> Iterator[World]:
    with running(bed_layout) as found:
        make_secret("s3")(found)
        yield found


@pytest.fixture(scope="module")
def watcher(world: World) -> Iterator[Watcher]:
    """All rows are applied; what shows is noted from the start."""
    watching = Watcher(world.client, world.namespaces, (*CASES, *GANG_CASES))
    watching.start()
    with ThreadPoolExecutor() as pool:
        beside = [pool.submit(_drive_gang, world, watching)]
        for case in CASES:
            for obj in case.before:
                world.apply(obj, case.namespace)
            if case.namespace:
                make_secret("s3")(world, case.namespace)
            if case.start is None:
                world.create(case.object, case.namespace)
            else:
                beside.append(pool.submit(case.start, world))
        yield watching
    watching.stop()
    for one in beside:
        one.result()


def _drive_gang(world: World, watching: Watcher) -> None:
    """One training, prepared well, meets one trouble after the other: each correction brings the next."""
    world.create(GANG)
    name, fields = GANG["metadata"]["name"], {field for _, template in GANG_EDITS for field in template}

    def is_prepared() -> bool:
        steps = {(p["metadata"]["labels"][LABEL_STEP], p["metadata"]["labels"][LABEL_TASK]) for p in world.pods(name)}
        return (step_label("train.pack-text"), TASK_FINALIZE) in steps

    operators.wait_for(is_prepared, seconds=240, otherwise="the training is not prepared")
    for name, template in GANG_EDITS:
        world.edit(GANG, podTemplate={**dict.fromkeys(fields), **template})
        mark = watching.marks[name]
        operators.wait_for(lambda mark=mark: None not in (mark.knew, mark.shown), seconds=120, otherwise=name)


def _name(case: Case) -> str:
    return case.name.replace(" ", "-")


@pytest.mark.parametrize("case", CASES, ids=_name)
def test_f9_it_shows_within_seconds_with_its_reason_and_what_to_do(world: World, watcher: Watcher, case: Case) -> None:
    _check_row(world, watcher, case)
    if case.fix is not None:
        case.fix(world)
    elif case.shows[0] != "Failed":
        world.delete(case.object)


def _check_row(world: World, watcher: Watcher, case: Case) -> None:
    mark = watcher.marks[case.name]

    def told() -> str:
        status = (world.get(case.object, case.namespace) or {}).get("status", {})
        return f"{case.name}: wanted {case.shows}, saw {mark.history}; now {status.get('conditions')}"

    operators.wait_for(lambda: mark.knew is not None, seconds=240, otherwise=told)
    operators.wait_for(lambda: mark.shown is not None, seconds=2 * SHOWN_SECONDS, otherwise=told)
    assert mark.knew is not None
    assert mark.shown is not None
    print(f"{case.name}: {max(0.0, mark.shown - mark.knew):.1f} s after Kubernetes knew; {mark.history}")
    message = mark.condition["message"]
    assert case.says in message
    assert mark.shown - mark.knew <= SHOWN_SECONDS
    entry = {
        "case": case.name,
        "kind": case.object["kind"],
        "why": case.why,
        "condition": f"{case.shows[0]}/{case.shows[1]}",
        "message": lifecycle.normalised(message, case, world.namespaces[case.namespace], S3_ENDPOINT),
        "do": case.do,
        "goesOn": case.goes_on,
    }
    lifecycle.check_documented("cases", entry, ORDER)


@pytest.mark.parametrize("case", GANG_CASES, ids=_name)
def test_f9_a_training_shows_why_a_pod_of_it_does_not_start(world: World, watcher: Watcher, case: Case) -> None:
    """The init container in which the worker waits for a master that is stuck is neither told of nor in the way."""
    _check_row(world, watcher, case)
    message = watcher.marks[case.name].condition["message"]
    assert "-master-0" in message
    assert "init-pytorch" not in message


def test_f9_a_training_goes_on_after_all_of_it_without_a_failure(world: World, watcher: Watcher) -> None:
    fix = GANG_CASES[-1].fix
    assert fix is not None
    fix(world)
    done = world.wait(GANG, "Complete", seconds=240)
    stage = next(s for s in done["status"]["stages"] if s["step"] == "train")
    assert (stage["attempt"], stage["failures"]) == (len(GANG_EDITS), 0)
    world.delete(GANG)


@pytest.mark.parametrize("case", [c for c in CASES if c.goes_on], ids=_name)
def test_f9_it_goes_on_after_what_was_told_is_done(world: World, watcher: Watcher, case: Case) -> None:
    # The kubelet and the Job controller wait longer and longer between their tries.
    done = world.wait(case.object, "Complete", seconds=200, namespace=case.namespace)
    assert done["status"]["stages"][0]["failures"] <= (case.shows[0] == "Running")
    world.delete(case.object, case.namespace)


@pytest.mark.parametrize("case", [c for c in CASES if c.shows[0] == "Failed"], ids=_name)
def test_f9_it_stays_failed_and_nothing_is_left_running(world: World, watcher: Watcher, case: Case) -> None:
    name = case.object["metadata"]["name"]
    operators.wait_for(lambda: all(p["status"]["phase"] in ("Succeeded", "Failed") for p in world.pods(name)))
    found = world.get(case.object)
    assert [operators.condition(found, type_)["status"] for type_ in ("Failed", "Running")] == ["True", "False"]
    assert operators.condition(found, "Failed") == watcher.marks[case.name].condition
    world.delete(case.object)


def test_an_event_says_what_the_condition_says(world: World) -> None:
    """``kubectl events`` and ``kubectl describe`` show it too."""
    obj = corpus("evented", **STUCK)
    world.create(obj)
    message = operators.condition(world.wait(obj, "Blocked"), "Blocked")["message"]

    def noted() -> list[Any]:
        events = world.client.list(EVENTS, world.namespace, field_selector="involvedObject.name=evented")
        return [
            e for e in events if (e["type"], e["reason"], e["message"]) == ("Warning", "ImageCannotBePulled", message)
        ]

    operators.wait_for(noted)
    world.delete(obj)


def test_few_unreadable_records_are_dead_letters(world: World) -> None:
    obj = corpus("few-bad", documents="few-bad")
    world.create(obj)
    done = world.wait(obj, "Complete")
    assert done["status"]["counts"]["documents"] == 199
    assert done["status"]["counts"]["records"] == 200
    assert [key for key in world.keys("few-bad/dead-letters/")]


def test_suspend_frees_the_gpu_and_resume_keeps_what_is_committed(world: World, gpu: None) -> None:
    source = corpus("many", documents="many", documentsPerShard=1)
    world.create(source)
    total = world.wait(source, "Complete")["status"]["counts"]["shards"]
    engine = {"name": "mined", "resources": {"gpus": 1}}
    first, second = (synthesis(name, "many", engine=engine) for name in ("first", "second"))
    world.create(first)

    def commits(name: str) -> dict[str, str]:
        return {key: tag for key, tag in world.keys(f"{name}/").items() if "/commits/" in key}

    operators.wait_for(lambda: commits("first"), otherwise="nothing is committed")
    second["spec"]["maxDocuments"] = 5
    world.create(second)
    world.wait(second, "Blocked")  # the only GPU is taken
    assert operators.condition(world.get(second), "Blocked")["reason"] == "Unschedulable"

    world.edit(first, suspend=True)
    suspended = world.wait(first, "Suspended")
    operators.wait_for(lambda: not world.pods("first"), otherwise="pods are left")
    kept = commits("first")
    assert 0 < len(kept) < total
    assert suspended["status"].get("startTime") is None  # the deadline starts anew
    world.wait(second, "Complete")  # it got the GPU that was freed
    assert commits("first") == kept

    world.edit(first, suspend=False)
    done = world.wait(first, "Complete", seconds=180)
    after = commits("first")
    assert len(after) == total
    assert {key: after[key] for key in kept} == kept  # nothing was made again
    assert done["status"]["stages"][0]["failures"] == 0
    for obj in (first, second):
        world.delete(obj)


def test_time_to_live_removes_the_object_and_keeps_its_output(world: World) -> None:
    obj = corpus("short-lived", ttlSecondsAfterFinished=1)
    world.create(obj)
    operators.wait_for(lambda: world.get(obj) is None, seconds=90, otherwise="it is still there")
    operators.wait_for(lambda: not world.owned("short-lived"), otherwise=lambda: world.owned("short-lived"))
    assert any(key.endswith("/manifest.json") for key in world.keys("short-lived/"))


def test_delete_takes_everything_and_keeps_the_output(world: World) -> None:
    obj = corpus("deleted")
    world.create(obj)
    assert "finalizers" not in world.wait(obj, "Complete")["metadata"]
    assert len(world.owned("deleted")) >= 5  # object, two Jobs, pods, ConfigMaps
    kept = world.keys("deleted/")
    world.kubectl("delete", "corpus", "deleted", "--timeout=10s")
    operators.wait_for(lambda: not world.owned("deleted"), otherwise=lambda: world.owned("deleted"))
    assert world.keys("deleted/") == kept


def test_delete_while_workers_run(world: World) -> None:
    source = corpus("many-again", documents="many", documentsPerShard=1)
    world.create(source)
    world.wait(source, "Complete")
    obj = synthesis("cut-short", "many-again")
    world.create(obj)
    operators.wait_for(lambda: [p for p in world.pods("cut-short") if p["status"]["phase"] == "Running"])
    world.kubectl("delete", "synthesisjob", "cut-short", "--timeout=10s")
    # Also a worker that is still loading its libraries leaves at once, and not after its grace period of a minute.
    operators.wait_for(lambda: not world.owned("cut-short"), seconds=45, otherwise=lambda: world.owned("cut-short"))


def test_an_absent_operator_is_missed_by_nobody(world: World) -> None:
    """Deletion finishes without it; what was created, edited and finished meanwhile is seen when it is back."""
    stuck, edited = corpus("orphan", **STUCK), corpus("edited", **STUCK)
    for obj in (stuck, edited):
        world.create(obj)
    for obj in (stuck, edited):
        world.wait(obj, "Blocked")
    world.stop_operator()
    world.kubectl("delete", "corpus", "orphan", "--timeout=10s")
    operators.wait_for(lambda: not world.owned("orphan"), otherwise=lambda: world.owned("orphan"))
    created = corpus("unseen")
    world.create(created)
    world.edit(edited, podTemplate=None)
    world.start_operator()
    for obj in (created, edited):
        world.wait(obj, "Complete")
    assert world.owned("orphan") == []


def test_r18_a_paused_object_is_left_alone(world: World) -> None:
    obj = corpus("paused")
    obj["metadata"]["annotations"] = {PAUSE: "disabled"}
    world.create(obj)
    seen = corpus("beside")  # when it is done, the operator has had the time
    world.create(seen)
    world.wait(seen, "Complete")
    assert world.owned("paused") == ["Corpus/paused"]
    assert "status" not in (world.get(obj) or {})
    world.patch(obj, {"metadata": {"annotations": {PAUSE: None}}})
    world.wait(obj, "Complete")


ALLOWED: dict[str, Any] = {
    "activeDeadlineSeconds": 3600,
    "ttlSecondsAfterFinished": 3600,
    "backoffLimit": 5,
    "cleanupPolicy": "Retain",
    "podTemplate": {"labels": {"team": "a"}},
    "suspend": True,
}
REFUSED: dict[str, Any] = {
    "uri": "s3://elsewhere/docs/*",
    "format": "parquet",
    "storage": {"uri": "s3://elsewhere/out"},
    "split": {"train": 0.5, "heldOut": 0.5},
    "documentsPerShard": 7,
    "managedBy": "example.com/other",
    "queueName": "another",
}


@pytest.fixture(scope="module")
def started(world: World) -> Any:
    """An object that has started, and cannot go on."""
    obj = corpus("started", **STUCK)
    world.create(obj)
    world.wait(obj, "Blocked")
    return obj


@pytest.mark.parametrize("field", REFUSED)
def test_f12_an_edit_is_refused(world: World, started: Any, field: str) -> None:
    with pytest.raises(ApiError) as refused:
        world.edit(started, **{field: REFUSED[field]})
    assert refused.value.status == 422
    said = re.search(rf"spec\.{field} .*?(create it again|suspend it first)", refused.value.message)
    assert said is not None, refused.value.message
    entry = {"case": f"spec.{field}", "message": said[0]}
    lifecycle.check_documented("refusals", entry, [f"spec.{f}" for f in REFUSED])


@pytest.mark.parametrize("field", ALLOWED)
def test_f12_an_edit_is_allowed(world: World, started: Any, field: str) -> None:
    kept = {"imagePullPolicy": "Never", "image": NOWHERE} if field == "podTemplate" else {}
    found = world.edit(started, **{field: ALLOWED[field]})["spec"][field]
    assert found == ({**ALLOWED[field], **kept} if kept else ALLOWED[field])


def test_f12_scaling_while_it_runs(world: World) -> None:
    """``kubectl scale`` changes a running synthesis and loses nothing."""
    source = corpus("many-more", documents="many", documentsPerShard=1)
    world.create(source)
    total = world.wait(source, "Complete")["status"]["counts"]["shards"]
    obj = synthesis("scaled", "many-more")
    world.create(obj)
    operators.wait_for(lambda: [p for p in world.pods("scaled") if p["status"]["phase"] == "Running"])
    world.kubectl("scale", "synthesisjob/scaled", "--replicas=2")
    world.wait(obj, "Complete", seconds=180)
    workers = [p for p in world.pods("scaled") if p["metadata"]["labels"]["instructpt.dev/task"] == "work"]
    assert len(workers) == 2
    assert len([key for key in world.keys("scaled/") if "/commits/" in key]) == total


@pytest.fixture
def gpu(world: World) -> Iterator[None]:
    """The node says that it has one GPU; nothing of it is used but the count."""

    def capacity(operation: str, **value: Any) -> None:
        path = f"/status/capacity/{GPU.replace('/', '~1')}"
        patch = json.dumps([{"op": operation, "path": path, **value}])
        world.layout.kubectl("patch", "node", NODE, "--subresource=status", "--type=json", "-p", patch)

    def allocatable() -> str:
        node = json.loads(world.layout.kubectl("get", "node", NODE, "-o", "json"))
        return node["status"]["allocatable"].get(GPU, "0")

    capacity("add", value="1")
    operators.wait_for(lambda: allocatable() == "1", otherwise=allocatable)
    yield
    capacity("remove")
