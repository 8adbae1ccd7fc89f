"""The order of writes, and what stops them: R13, R14, R15, R18. What a server answers is tested on a real one."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructpt_operator.actions import Action, ConfirmAbsent, Create, Delete, Event, Outcome, Patch, Ref
from instructpt_operator.executor import PROGRESS_SECONDS, STATUS_TRIES, Executor, Result
from instructpt_operator.runtime.client import ApiError, ResourceType
from instructpt_operator.runtime.merge import difference, plain

TYPES = {
    ("instructpt.dev/v1alpha1", "Corpus"): ResourceType(
        api_version="instructpt.dev/v1alpha1", kind="Corpus", plural="corpora"
    ),
    ("batch/v1", "Job"): ResourceType(api_version="batch/v1", kind="Job", plural="jobs"),
}
JOB = Ref(api_version="batch/v1", kind="Job", namespace="ns", name="pubmed-inspect-1", uid="j1")
EVENTS = (Event(type="Normal", reason="Started", message="one"), Event(type="Normal", reason="Going", message="two"))


class Client:
    """Notes the calls; answers as told."""

    def __init__(self) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.live: dict[str, dict[str, Any]] = {}
        self.fail: Callable[[str], None] = lambda call: None

    def guard_writes(self, may_write: Callable[[], bool]) -> None:
        self.guard = may_write

    def get(self, type_: ResourceType, namespace: str, name: str) -> dict[str, Any]:
        self.log.append(("get", name))
        self.fail("get")
        if name not in self.live:
            raise ApiError(404, "NotFound")
        return self.live[name]

    def create(self, type_: ResourceType, obj: Mapping[str, Any]) -> dict[str, Any]:
        self.log.append(("create", obj["metadata"]["name"]))
        self.fail("create")
        return {**obj, "metadata": {**obj["metadata"], "uid": "new"}}

    def merge_patch(
        self, type_: ResourceType, namespace: str, name: str, body: Mapping[str, Any], *, subresource: str | None = None
    ) -> dict[str, Any]:
        self.log.append((subresource or "patch", name, body))
        self.fail(subresource or "patch")
        return {"patched": name}

    def delete(self, type_: ResourceType, namespace: str, name: str, *, uid: str | None, propagation: str) -> None:
        self.log.append(("delete", name, uid, propagation))
        self.fail("delete")


class Recorder:
    def __init__(self, log: list[tuple[Any, ...]]) -> None:
        self.log = log

    def record(self, obj: Mapping[str, Any], *, type: str, reason: str, note: str) -> bool:
        self.log.append(("event", reason))
        return False


class World:
    """An executor with everything around it under the test's control."""

    def __init__(self) -> None:
        self.client = Client()
        self.log = self.client.log
        self.fed: list[Any] = []
        self.now = 0.0
        self.leads = True
        self.hooks: list[tuple[str, str, str]] = []
        self.executor = Executor(
            self.client,  # type: ignore[arg-type]
            types=TYPES,
            feed=self.fed.append,
            recorder=Recorder(self.log),  # type: ignore[arg-type]
            may_write=lambda: self.leads,
            clock=lambda: self.now,
            before_write=lambda verb, ref: self.hooks.append(("before", verb, ref.name)),
            after_write=lambda verb, ref: self.hooks.append(("after", verb, ref.name)),
        )

    def execute(self, obj: Mapping[str, Any], outcome: Outcome, **options: Any) -> Result:
        return self.executor.execute(obj, outcome, **{"recompute": lambda live: outcome, **options})

    def names(self) -> list[str]:
        return [entry[0] for entry in self.log]


@pytest.fixture
def world() -> World:
    return World()


def corpus(status: Mapping[str, Any] | None = None, **metadata: Any) -> dict[str, Any]:
    meta = {"name": "pubmed", "namespace": "ns", "uid": "c1", "resourceVersion": "7", **metadata}
    return {"apiVersion": "instructpt.dev/v1alpha1", "kind": "Corpus", "metadata": meta, "status": dict(status or {})}


def create(name: str = "pubmed-inspect-1") -> Create:
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "namespace": "ns"}}
    return Create(object=job, owner_uid="c1")


ACTIONS: tuple[Action, ...] = (
    ConfirmAbsent(ref=JOB),
    create(),
    Patch(ref=JOB, body={"spec": {"suspend": True}}),
    Delete(ref=JOB),
)


def test_actions_then_status_then_events(world: World) -> None:
    result = world.execute(
        corpus({"phase": "Pending"}),
        Outcome(actions=ACTIONS, status={"phase": "Running"}, events=EVENTS, requeue_after=30),
    )
    assert result == Result(requeue_after=30)
    assert world.log == [
        ("get", JOB.name),
        ("create", JOB.name),
        ("patch", JOB.name, {"spec": {"suspend": True}, "metadata": {"uid": "j1"}}),
        ("delete", JOB.name, "j1", "Foreground"),
        ("status", "pubmed", {"metadata": {"uid": "c1", "resourceVersion": "7"}, "status": {"phase": "Running"}}),
        ("event", "Started"),
        ("event", "Going"),
    ]
    verbs = ["create", "patch", "delete", "status", "event", "event"]
    assert [(when, verb) for when, verb, _ in world.hooks] == [(w, v) for v in verbs for w in ("before", "after")]
    assert world.executor.writes == {"create": 1, "patch": 1, "delete": 1, "status": 1, "event": 2}
    assert len(world.fed) == 3  # created, patched, status


@pytest.mark.parametrize("verb", ["get", "create", "patch", "delete", "status"])
@pytest.mark.parametrize("status", [0, 403, 422, 500])
def test_r14_first_failure_stops_everything_after_it(world: World, verb: str, status: int) -> None:
    def fail(call: str) -> None:
        if call == verb:
            raise ApiError(status, "Because")

    world.client.fail = fail
    result = world.execute(corpus(), Outcome(actions=ACTIONS, status={"phase": "Running"}, events=EVENTS))
    assert result.retry
    assert result.error is not None
    assert result.error.status == status
    assert world.names()[-1] == verb
    assert "event" not in world.names()


def test_r13_equal_status_is_not_written_and_r14_its_events_are_not_sent_again(world: World) -> None:
    status = {"phase": "Running", "conditions": [{"type": "Running", "status": "True"}]}
    result = world.execute(corpus(status), Outcome(status={**status, "cost": None}, events=EVENTS, requeue_after=5))
    assert (result, world.log) == (Result(requeue_after=5), [])


def test_r13_no_status_means_none_is_written(world: World) -> None:
    assert world.execute(corpus({"phase": "Running"}), Outcome(events=EVENTS)) == Result()
    assert world.log == []


def test_r13_status_that_is_not_a_number_is_not_written_for_ever(world: World) -> None:
    outcome = Outcome(status={"phase": "Running", "loss": float("nan")})
    assert world.execute(corpus({"phase": "Running"}), outcome) == Result()
    assert world.log == []


def test_r13_progress_is_written_every_ten_seconds(world: World) -> None:
    written = []
    for second in range(41):
        world.now = float(second)
        old = {"phase": "Running", "progress": {"done": -1}}
        new = {"phase": "Running", "progress": {"done": second}}
        result = world.execute(corpus(old), Outcome(status=new, urgent=False, requeue_after=15))
        if world.log:
            written.append(second)
            world.log.clear()
            assert result.requeue_after == 15
        else:
            assert result.requeue_after == PROGRESS_SECONDS - second % 10
    assert written == [0, 10, 20, 30, 40]


@pytest.mark.parametrize(
    ("new", "options"),
    [
        ({"phase": "Running", "progress": {"done": 2}}, {"urgent": True}),
        ({"phase": "Complete", "progress": {"done": 2}}, {"urgent": False}),
        ({"progress": {"done": 2}}, {"urgent": False}),
        ({"phase": "Running", "progress": {"done": 2}}, {"urgent": False, "events": EVENTS}),
    ],
)
def test_r13_what_is_more_than_progress_does_not_wait(
    world: World, new: dict[str, Any], options: dict[str, Any]
) -> None:
    old = {"phase": "Running", "progress": {"done": 1}}
    world.execute(corpus(old), Outcome(status={**old, "progress": {"done": 0}}, urgent=False))
    world.log.clear()
    world.execute(corpus(old), Outcome(status=new, **options))
    assert world.names()[0] == "status"


def test_r13_memory_of_progress_is_bounded(world: World) -> None:
    for n in range(1000):
        world.now += 1
        world.execute(corpus(uid=f"c{n}"), Outcome(status={"phase": "Running"}))
    assert len(world.executor._written_at) <= PROGRESS_SECONDS + 1


def conflict(call: str) -> None:
    if call == "status":
        raise ApiError(409, "Conflict")


def test_r13_conflict_is_computed_again_three_times_without_an_error(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    world.client.fail = conflict
    world.client.live["pubmed"] = corpus({"phase": "Live"}, resourceVersion="8")
    seen = []

    def recompute(live: Mapping[str, Any]) -> Outcome:
        seen.append(live)
        return Outcome(actions=(create(),), status={"phase": f"Try{len(seen)}"}, events=EVENTS)

    result = world.execute(
        corpus(), Outcome(actions=(create(),), status={"phase": "Running"}, events=EVENTS), recompute=recompute
    )
    assert result == Result(retry=True)
    assert world.names() == ["create"] + ["status", "get"] * STATUS_TRIES  # what was created is not created again
    assert {live["metadata"]["resourceVersion"] for live in seen} == {"8"}
    assert [entry[2]["metadata"]["resourceVersion"] for entry in world.log if entry[0] == "status"] == ["7", "8", "8"]
    assert world.fed[-1]["metadata"]["resourceVersion"] == "8"
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_r13_conflict_that_shows_another_decision_acts_on_it_before_the_status(world: World) -> None:
    world.client.live["pubmed"] = corpus(resourceVersion="8")
    failures = iter([True, False])
    world.client.fail = lambda call: conflict(call) if call == "status" and next(failures) else None
    again = Outcome(actions=(create(), Delete(ref=JOB)), status={"phase": "Stopping"}, events=EVENTS)
    first = Outcome(actions=(ConfirmAbsent(ref=JOB), create()), status={"phase": "Running"}, events=EVENTS)
    world.execute(corpus(), first, recompute=lambda live: again)
    assert world.names() == ["get", "create", "status", "get", "delete", "status", "event", "event"]


def test_conflict_with_an_object_that_was_deleted_or_replaced_ends_quietly(world: World) -> None:
    world.client.fail = conflict
    assert world.execute(corpus(), Outcome(status={"phase": "Running"})) == Result()
    world.client.live["pubmed"] = corpus(uid="c2")
    assert world.execute(corpus(), Outcome(status={"phase": "Running"})) == Result()
    assert world.names() == ["status", "get"] * 2


def test_r15_nothing_is_written_by_who_does_not_lead(world: World) -> None:
    world.leads = False
    result = world.execute(corpus(), Outcome(actions=(create(),), status={"phase": "Running"}, events=EVENTS))
    assert (result.retry, world.log, world.executor.writes) == (True, [], {})


def test_r15_client_asks_too(world: World) -> None:
    assert world.client.guard()
    world.leads = False
    assert not world.client.guard()


@pytest.mark.parametrize("allowed", range(6))
def test_r15_lease_is_asked_before_each_write(world: World, allowed: int) -> None:
    asked = iter([True] * allowed)
    world.executor._may_write = lambda: next(asked, False)
    world.execute(corpus(), Outcome(actions=ACTIONS, status={"phase": "Running"}, events=EVENTS))
    assert len([name for name in world.names() if name != "get"]) == allowed
    assert sum(world.executor.writes.values()) == allowed


def test_r18_paused_object_gets_no_write(world: World) -> None:
    paused = corpus(annotations={"instructpt.dev/reconcile": "disabled"})
    outcome = Outcome(actions=ACTIONS, status={"phase": "Running"}, events=EVENTS, requeue_after=1)
    assert world.execute(paused, outcome) == Result()
    assert (world.log, world.hooks) == ([], [])
    assert world.execute(corpus(annotations={"instructpt.dev/reconcile": "enabled"}), outcome) != Result()
    assert world.log


def test_r18_pause_that_is_found_after_a_conflict_holds(world: World) -> None:
    world.client.fail = conflict
    world.client.live["pubmed"] = corpus(annotations={"instructpt.dev/reconcile": "disabled"}, resourceVersion="8")
    assert world.execute(corpus(), Outcome(status={"phase": "Running"})) == Result()
    assert world.names() == ["status", "get"]


# JSON merge patches


def apply_merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7396, word for word."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = apply_merge_patch(result.get(name), value)
    return result


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(0, 3), st.text("ab", max_size=2), st.floats())
VALUES = st.recursive(
    SCALARS, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("abc"), inner))
)
OBJECTS = st.dictionaries(st.sampled_from("abc"), VALUES)


@given(OBJECTS, OBJECTS)
def test_r13_merge_patch_yields_the_new_status(old: dict[str, Any], new: dict[str, Any]) -> None:
    before, after = plain(old), plain(new)
    patch = difference(before, after)
    assert apply_merge_patch(before, patch) == after
    assert (patch == {}) == (before == after)
    json.dumps(patch, allow_nan=False)
