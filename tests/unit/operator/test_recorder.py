"""R14: events are counted in a series, cut, bounded, and never in the way."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

import pytest

from instructpt_operator.runtime import recorder as module
from instructpt_operator.runtime.client import ApiError, ResourceType
from instructpt_operator.runtime.recorder import EventRecorder

OBJECT = {
    "apiVersion": "instructpt.dev/v1alpha1",
    "kind": "Corpus",
    "metadata": {"name": "pubmed", "namespace": "ns", "uid": "u1", "resourceVersion": "7"},
}


class Client:
    def __init__(self) -> None:
        self.created: list[Mapping[str, Any]] = []
        self.patched: list[tuple[str, Mapping[str, Any]]] = []
        self.error: Exception | None = None

    def create(self, type_: ResourceType, obj: Mapping[str, Any]) -> dict[str, Any]:
        if self.error:
            raise self.error
        self.created.append(obj)
        return dict(obj)

    def merge_patch(
        self, type_: ResourceType, namespace: str | None, name: str, body: Mapping[str, Any]
    ) -> dict[str, Any]:
        if self.error:
            raise self.error
        self.patched.append((name, body))
        return {}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def recorder(client: Client, clock: Clock) -> EventRecorder:
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    return EventRecorder(
        client, component="instructpt.dev/operator", instance="pod-1", clock=clock,
        now=lambda: start + datetime.timedelta(seconds=clock.now),
    )  # fmt: skip


def record(recorder: EventRecorder, note: str = "12 shards", obj: Mapping[str, Any] = OBJECT, **changes: str) -> bool:
    return recorder.record(obj, **{"type": "Normal", "reason": "ShardsPlanned", "note": note, **changes})


def test_r14_event_says_who_what_and_about_which(client: Client, recorder: EventRecorder) -> None:
    assert record(recorder)
    event = client.created[0]
    assert event["eventTime"] == "2026-01-01T00:00:00.000000Z"
    assert event["metadata"]["namespace"] == "ns"
    assert event["metadata"]["name"].startswith("pubmed.")
    assert event["regarding"] == {
        "apiVersion": "instructpt.dev/v1alpha1", "kind": "Corpus", "name": "pubmed", "namespace": "ns", "uid": "u1",
        "resourceVersion": "7",
    }  # fmt: skip
    said = (event["reportingController"], event["reportingInstance"], event["type"], event["reason"], event["note"])
    assert said == ("instructpt.dev/operator", "pod-1", "Normal", "ShardsPlanned", "12 shards")
    assert "series" not in event


def test_r14_repeats_are_counted_in_one_series(client: Client, clock: Clock, recorder: EventRecorder) -> None:
    for _ in range(4):
        record(recorder)
        clock.now += 300  # each within six minutes of the last
    assert len(client.created) == 1
    assert {name for name, _ in client.patched} == {client.created[0]["metadata"]["name"]}
    assert [body["series"]["count"] for _, body in client.patched] == [2, 3, 4]
    assert client.patched[-1][1]["series"]["lastObservedTime"] == "2026-01-01T00:15:00.000000Z"


def test_r14_after_six_minutes_it_is_a_new_event(client: Client, clock: Clock, recorder: EventRecorder) -> None:
    record(recorder)
    clock.now += 361
    record(recorder)
    assert (len(client.created), client.patched) == (2, [])


def test_r14_another_object_type_reason_or_note_is_another_event(client: Client, recorder: EventRecorder) -> None:
    record(recorder)
    record(recorder, note="13 shards")
    record(recorder, type="Warning")
    record(recorder, reason="Completed")
    record(recorder, obj={**OBJECT, "metadata": {**OBJECT["metadata"], "uid": "u2"}})  # type: ignore[dict-item]
    assert (len(client.created), client.patched) == (5, [])


def test_r14_event_that_the_server_forgot_is_sent_anew(client: Client, recorder: EventRecorder) -> None:
    record(recorder)
    client.merge_patch = gone  # type: ignore[method-assign]
    assert record(recorder)
    assert len(client.created) == 2


def gone(*args: Any, **kwargs: Any) -> Any:
    raise ApiError(404, "NotFound")


@pytest.mark.parametrize("error", [ApiError(500, "InternalError"), ApiError(403, "Forbidden"), OSError("x")])
def test_r14_failed_event_fails_nothing(client: Client, recorder: EventRecorder, error: Exception) -> None:
    client.error = error
    assert not record(recorder)
    assert recorder.failures == 1
    client.error = None
    assert record(recorder)
    client.error = error
    assert not record(recorder)
    client.error = None
    record(recorder)
    assert client.patched[-1][1]["series"]["count"] == 3  # the one that was not sent happened all the same


@pytest.mark.parametrize("note", ["x" * 5000, "é" * 5000, "x" + "é" * 5000, "😀" * 400])
def test_r14_notes_are_cut_at_a_character(client: Client, recorder: EventRecorder, note: str) -> None:
    record(recorder, note=note)
    sent = client.created[0]["note"]
    assert 1018 <= len(sent.encode()) <= 1024
    assert sent.endswith("...")
    assert note.startswith(sent[:-3])
    record(recorder, note=note)
    assert len(client.patched) == 1


def test_note_of_1024_bytes_is_left_alone(client: Client, recorder: EventRecorder) -> None:
    record(recorder, note="é" * 512)
    assert client.created[0]["note"] == "é" * 512


def test_r14_memory_is_bounded(
    client: Client, clock: Clock, recorder: EventRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEYS", 10)
    for n in range(50):
        record(recorder, note=str(n))
    assert len(recorder._seen) == 10
    record(recorder, note="49")
    assert len(client.patched) == 1
    clock.now += 1000
    record(recorder, note="new")
    assert len(recorder._seen) == 1


def test_event_about_an_object_without_namespace(client: Client, recorder: EventRecorder) -> None:
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "uid": "u"}}
    record(recorder, obj=node)
    assert client.created[0]["metadata"]["namespace"] == "default"
    assert "namespace" not in client.created[0]["regarding"]
