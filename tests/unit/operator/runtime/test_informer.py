"""R1 to R5: list, watch, relist, identity, back-off, a small cache; R16 and the cache's part of F3."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from fakeapi import FakeApi, eventually

from instructpt_operator.runtime.client import ApiError
from instructpt_operator.runtime.informer import Informer
from instructpt_operator.runtime.queue import WorkQueue
from instructpt_operator.runtime.store import InformerEvent
from instructpt_operator.runtime.worker import WorkerPool

from .conftest import THING, Naps, Witness, agree, cached, client_of

Make = Callable[..., Informer]


def queries(api: FakeApi, verb: str) -> list[dict[str, str]]:
    return [query for seen, query in api.requests if seen == verb]


def watching(api: FakeApi) -> None:
    eventually(lambda: api.watchers, "a watch")


def test_r1_lists_in_pages_and_watches_from_the_version_of_the_list(api: FakeApi, informer: Make) -> None:
    api.page_items = 2
    for number in range(5):
        api.put(f"thing-{number}")
    made = informer(label_selector="app=x", namespace="default")
    watching(api)
    lists, watches = queries(api, "list"), queries(api, "watch")
    assert [query["limit"] for query in lists] == ["500"] * 3
    assert [("continue" in query) for query in lists] == [False, True, True]
    assert len(watches) == 1
    assert watches[0]["resourceVersion"] == "105"
    assert watches[0]["allowWatchBookmarks"] == "true"
    assert {query["labelSelector"] for query in lists + watches} == {"app=x"}
    assert 240 <= int(watches[0]["timeoutSeconds"]) <= 480
    assert cached(made) == api.truth()
    assert (made.stats.lists, made.stats.watches, made.stats.relists) == (1, 1, 0)


def test_r1_length_of_a_watch_differs_from_watch_to_watch(api: FakeApi, informer: Make) -> None:
    informer()
    for count in range(1, 6):
        eventually(lambda n=count: len(queries(api, "watch")) >= n and api.watchers)
        api.end_watches()
    eventually(lambda: len(queries(api, "watch")) >= 6)
    seconds = {int(query["timeoutSeconds"]) for query in queries(api, "watch")}
    assert len(seconds) > 1
    assert all(240 <= each <= 480 for each in seconds)
    assert api.count("list") == 1


def test_r1_silent_connection_is_given_up_after_75_seconds() -> None:
    asked: list[dict[str, Any]] = []
    done = threading.Event()

    class Client:
        def pages(self, *args: Any, **kwargs: Any) -> Any:
            yield [], "7"

        def watch(self, *args: Any, **kwargs: Any) -> Any:
            asked.append(kwargs)
            done.set()
            raise ApiError(0, "Timeout")

    made = Informer(Client(), THING, random=Random(1))
    made.start()
    assert done.wait(20)
    made.stop()
    assert asked[0]["read_timeout_seconds"] == 75.0
    assert asked[0]["resource_version"] == "7"


def test_r1_bookmark_moves_the_version_that_the_next_watch_starts_from(api: FakeApi, informer: Make) -> None:
    made = informer()
    watching(api)
    api.version = 500  # other types moved on
    api.bookmark()
    api.end_watches()
    eventually(lambda: len(queries(api, "watch")) == 2)
    assert queries(api, "watch")[1]["resourceVersion"] == "500"
    assert made.stats.lists == 1


@pytest.mark.parametrize("by_status", [True, False], ids=["http-410", "in-stream-410"])
def test_r2_gone_leads_to_a_relist_and_a_diff(api: FakeApi, informer: Make, witness: Witness, by_status: bool) -> None:
    for name in ("stays", "goes", "changes"):
        api.put(name, size=1)
    made = informer()
    watching(api)
    witness.events.clear()
    with api.changed:
        api.mangle = lambda event: []  # all of this happens in the gap
        api.remove("goes")
        api.put("changes", size=2)
        api.put("comes", size=3)
        api.mangle = lambda event: [event]
        if by_status:
            api.compact()
            api.end_watches()
        else:
            api.expire_watches()
    agree(api, made)
    eventually(lambda: made.stats.relists == 1)
    assert sorted(witness.kinds()) == [("ADDED", "comes"), ("DELETED", "goes"), ("MODIFIED", "changes")]
    ghost = next(event for event in witness.events if event.kind == "DELETED")
    assert ghost.object["spec"] == {"size": 1}
    witness.check(made.store)


def test_r2_list_that_expires_between_its_pages_starts_again(api: FakeApi, informer: Make) -> None:
    api.page_items = 2
    for number in range(6):
        api.put(f"thing-{number}")
    api.on_page = lambda number: api.expire_lists() if number == 2 else None
    made = informer()
    agree(api, made)
    assert made.stats.errors == 1
    assert made.stats.relists == 0


def test_r2_relist_that_fails_leaves_the_cache_as_it_was(
    api: FakeApi, informer: Make, witness: Witness, naps: Naps
) -> None:
    api.put("a")
    api.put("b")
    made = informer()
    watching(api)
    api.fault = lambda verb: "500"
    api.expire_watches()
    eventually(lambda: api.count("list") >= 4)
    assert len(made.store) == 2
    assert [event.kind for event in witness.events] == ["ADDED", "ADDED"]


@pytest.mark.parametrize("relist", [True, False], ids=["seen-in-a-list", "seen-in-the-watch"])
def test_r3_new_uid_under_an_old_name_is_a_delete_and_an_add(
    api: FakeApi, informer: Make, witness: Witness, relist: bool
) -> None:
    first = api.put("a", size=1)
    made = informer()
    watching(api)
    witness.events.clear()
    with api.changed:
        api.mangle = lambda event: [] if relist or event["type"] == "DELETED" else [event]
        api.remove("a")
        second = api.put("a", size=2)
        if relist:
            api.expire_watches()
    agree(api, made)
    assert witness.kinds() == [("DELETED", "a"), ("ADDED", "a")]
    assert witness.events[0].object["metadata"]["uid"] == first["metadata"]["uid"]
    assert witness.events[1].object["metadata"]["uid"] == second["metadata"]["uid"] != first["metadata"]["uid"]
    witness.check(made.store)


def test_r4_waits_grow_from_half_a_second_to_thirty_with_jitter(api: FakeApi, informer: Make, naps: Naps) -> None:
    api.fault = lambda verb: "503"
    made = informer(start=False)
    made.start()
    eventually(lambda: len(naps.seconds) >= 12)
    api.fault = lambda verb: None
    assert made.wait_synced(20)
    for wait, nominal in zip(naps.seconds, [0.5, 1, 2, 4, 8, 16, 20, 20, 20, 20, 20, 20], strict=False):
        assert nominal <= wait <= nominal * 1.5 <= 30
    assert len({round(wait, 6) for wait in naps.seconds[6:12]}) > 1


def test_r4_waits_start_anew_after_the_watch_has_brought_something(api: FakeApi, informer: Make, naps: Naps) -> None:
    failures = iter(["500"] * 5)
    api.fault = lambda verb: next(failures, None)
    made = informer()
    watching(api)
    api.put("a")
    eventually(lambda: len(made.store) == 1)
    failures = iter(["500"])
    before = len(naps.seconds)
    api.end_watches()
    eventually(lambda: len(naps.seconds) > before)
    assert naps.seconds[before] <= 0.75


ODD_LINES = {
    "error-500": b'{"type":"ERROR","object":{"kind":"Status","code":500,"reason":"InternalError","message":"etcd"}}\n',
    "error-without-code": b'{"type":"ERROR","object":{}}\n',
    "error-with-odd-code": b'{"type":"ERROR","object":{"code":"many"}}\n',
    "broken-json": b'{"type":"ADDED","object":{"metadata":{"na\n',
    "html": b"<html><body>504 Gateway Time-out</body></html>\n",
    "not-an-object": b"[1,2]\n",
    "null": b"null\n",
    "object-is-null": b'{"type":"ADDED","object":null}\n',
    "no-metadata": b'{"type":"MODIFIED","object":{"kind":"Thing"}}\n',
    "unknown-type": b'{"type":"SURPRISE","object":{"metadata":{"name":"a","resourceVersion":"9"}}}\n',
    "empty-line": b"\n",
    "not-utf8": b"\xff\xfe\x00\n",
}


@pytest.mark.parametrize("line", ODD_LINES.values(), ids=ODD_LINES)
def test_r4_nothing_in_a_watch_ends_the_thread(api: FakeApi, informer: Make, witness: Witness, line: bytes) -> None:
    api.put("a")
    made = informer()
    watching(api)
    api.send_raw(line)
    eventually(lambda: made.stats.errors >= 1)
    api.put("b")
    agree(api, made)
    assert made.alive
    assert made.stats.errors == 1
    witness.check(made.store)


@pytest.mark.parametrize("fault", ["html", "garbage", "reset", "400", "403", "404", "409", "500"])
@pytest.mark.parametrize("verb", ["list", "watch"])
def test_r4_no_answer_ends_the_thread(api: FakeApi, informer: Make, naps: Naps, fault: str, verb: str) -> None:
    failures = iter([fault] * 3)
    api.fault = lambda asked: next(failures, None) if asked == verb else None
    made = informer()
    eventually(lambda: made.stats.errors == 3)
    api.put("a")
    agree(api, made)
    eventually(lambda: api.watchers)
    assert made.alive
    assert made.stats.errors == len(naps.seconds) == 3


def test_r4_handler_that_raises_loses_no_event(api: FakeApi, informer: Make) -> None:
    seen: list[str] = []

    def handler(event: InformerEvent) -> None:
        seen.append(event.object["metadata"]["name"])
        raise RuntimeError("a bug of the handler")

    made = informer(on_event=handler)
    for name in "abc":
        api.put(name)
    eventually(lambda: seen == ["a", "b", "c"])
    assert made.stats.errors == 3
    assert (made.stats.lists, made.stats.watches) == (1, 1)


def test_r4_thread_that_ends_is_not_alive(api: FakeApi, informer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    died = threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda args: died.set())

    def wait(seconds: float) -> None:
        raise SystemError

    made = informer(wait=wait)
    watching(api)
    assert made.alive
    api.end_watches()  # too soon, so the informer waits
    eventually(lambda: not made.alive)
    assert died.is_set()


def test_r5_managed_fields_are_dropped_and_objects_transformed(api: FakeApi, informer: Make) -> None:
    api.put("listed", big="x", small="y")
    made = informer(transform=lambda obj: {**obj, "spec": {"small": obj["spec"]["small"]}})
    watched = api.put("watched", big="x", small="z")
    agree(api, made)
    made.feed(api.put("fed", big="x", small="w"))
    for obj in made.store.list():
        assert "managedFields" not in obj["metadata"]
        assert set(obj["spec"]) == {"small"}
        assert obj["kind"] == "Thing"
        assert obj["apiVersion"] == "test.dev/v1"
    assert watched["metadata"]["managedFields"], "the object of the caller is left alone"


def test_r5_index_finds_children_by_owner(api: FakeApi, informer: Make) -> None:
    made = informer(indexers={"size": lambda obj: [str(obj["spec"]["size"])]})
    api.put("a", size=1)
    api.put("b", size=1)
    api.put("c", size=2)
    agree(api, made)
    assert [obj["metadata"]["name"] for obj in made.store.by_index("size", "1")] == ["a", "b"]
    api.put("a", size=2)
    api.remove("b")
    agree(api, made)
    assert made.store.by_index("size", "1") == []
    assert {obj["metadata"]["name"] for obj in made.store.by_index("size", "2")} == {"a", "c"}


def test_r16_standby_keeps_a_warm_cache_and_its_workers_start_with_every_key_once(api: FakeApi, informer: Make) -> None:
    queue: WorkQueue[str] = WorkQueue()
    done: list[str] = []
    pool = WorkerPool(queue, done.append, workers=2)
    made = informer(on_event=lambda event: queue.add(event.object["metadata"]["name"]))
    for size in range(5):
        for name in "abc":
            api.put(name, size=size)
    agree(api, made)
    eventually(lambda: made.stats.events == 15)
    assert made.synced
    assert done == []
    lists = api.count("list")
    pool.start()  # it leads now
    eventually(lambda: len(done) == 3)
    assert pool.stop()
    assert sorted(done) == ["a", "b", "c"]
    assert api.count("list") == lists == 1


def test_unknown_optional_type_has_no_objects_until_it_is_served(
    api: FakeApi, informer: Make, witness: Witness
) -> None:
    served = False
    api.fault = lambda verb: None if served else "404"
    api.put("a")
    made = informer(optional=True)
    assert made.synced
    assert made.store.list() == []
    served = True
    agree(api, made)
    served = False
    api.expire_watches()
    eventually(lambda: len(made.store) == 0)
    witness.check(made.store)


def test_f3_fed_object_is_read_at_once_and_an_older_event_does_not_undo_it(
    api: FakeApi, informer: Make, witness: Witness
) -> None:
    api.put("a", size=1)
    made = informer()
    watching(api)
    api.freeze()
    stale = api.put("a", size=2)
    written = api.put("a", size=3)
    made.feed(written)
    assert made.store.get("default", "a")["spec"] == {"size": 3}
    made.feed(stale)
    assert made.store.get("default", "a")["spec"] == {"size": 3}
    api.freeze(False)
    api.put("last")
    agree(api, made)
    assert [event.object["spec"] for event in witness.events if event.object["metadata"]["name"] == "a"] == [
        {"size": 1},
        {"size": 3},
    ]
    witness.check(made.store)


def test_f3_fed_object_that_the_watch_never_shows_is_gone_after_the_next_list(
    api: FakeApi, informer: Make, witness: Witness
) -> None:
    made = informer()
    watching(api)
    with api.changed:
        api.mangle = lambda event: []
        made.feed(api.put("a"))
        api.remove("a")
        api.mangle = lambda event: [event]
    assert made.store.get("default", "a") is not None
    api.expire_watches()
    eventually(lambda: made.store.get("default", "a") is None)
    assert witness.kinds() == [("ADDED", "a"), ("DELETED", "a")]


def test_f3_object_fed_while_a_list_is_under_way_survives_that_list(
    api: FakeApi, informer: Make, witness: Witness
) -> None:
    api.page_items = 1
    for name in "abc":
        api.put(name, size=1)
    made = informer()
    watching(api)
    fed: list[dict[str, Any]] = []

    def on_page(number: int) -> None:
        if number == 5:  # the list was taken with its first page, the fourth request
            fed.append(api.put("new"))
            fed.append(api.put("a", size=2))
            for obj in fed:
                made.feed(obj)

    api.on_page = on_page
    api.expire_watches()
    eventually(lambda: made.stats.relists == 1)
    agree(api, made)
    assert len(fed) == 2
    assert [kind for kind in witness.kinds() if kind[1] in ("new", "a")] == [
        ("ADDED", "a"),
        ("ADDED", "new"),
        ("MODIFIED", "a"),
    ]
    witness.check(made.store)


def test_f3_late_read_does_not_bring_back_what_was_deleted(api: FakeApi, informer: Make, witness: Witness) -> None:
    read_before = api.put("a")
    made = informer()
    watching(api)
    api.remove("a")
    eventually(lambda: len(made.store) == 0)
    made.feed(json.loads(json.dumps(read_before)))
    assert made.store.list() == []
    made.feed(api.put("a"))
    assert len(made.store) == 1
    witness.check(made.store)


def test_f3_connection_that_falls_silent_is_opened_again_and_nothing_is_missed(
    api: FakeApi, informer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("instructpt_operator.runtime.informer.READ_SECONDS", 0.2)
    made = informer(client=client_of(api))
    watching(api)
    api.freeze()
    api.put("a")
    eventually(lambda: api.count("watch") >= 2)
    assert made.store.list() == []
    api.freeze(False)
    agree(api, made)
    assert made.stats.lists == 1


def test_stop_ends_a_silent_watch_at_once(api: FakeApi, informer: Make) -> None:
    made = informer()
    watching(api)
    eventually(lambda: made.stats.watches == 1)
    made.stop()
    assert not made._thread.is_alive()
    assert made.alive, "it was told to stop"
    assert made.stats.errors == 0


def test_activity_is_of_the_loop_and_news_are_of_the_server(api: FakeApi, informer: Make, naps: Naps) -> None:
    now = [1000.0]
    made = informer(clock=lambda: now[0])
    watching(api)
    now[0] += 60
    eventually(lambda: made.last_activity() == 60)
    api.bookmark()
    eventually(lambda: made.last_activity() == 0)
    assert made.last_heard() == 0
    now[0] += 100
    api.fault = lambda verb: "500"
    errors = made.stats.errors
    api.end_watches()
    eventually(lambda: made.stats.errors > errors)
    # A server that is down is no reason to restart the process.
    eventually(lambda: made.last_activity() == 0)
    assert made.last_heard() == 100
