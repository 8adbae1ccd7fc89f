from __future__ import annotations

import pytest
from faults import FaultyStore, Killed, kill_points

from instructpt.errors import StorageError
from instructpt.storage import MemoryStore, Store


def test_requests_are_counted_by_verb(tmp_path):
    store = FaultyStore(MemoryStore())
    assert isinstance(store, Store)
    (tmp_path / "f").write_bytes(b"x")
    store.put("a", b"1")
    store.create("b", b"2")
    store.put_file("c", tmp_path / "f")
    store.get("a")
    store.open("a").close()
    store.download("a", tmp_path / "g")
    store.head("a")
    store.exists("zz")
    store.delete("a")
    list(store.list())
    assert store.requests == {"put": 3, "get": 3, "head": 2, "delete": 1, "list": 1}
    assert store.writes == 4


def test_listings_are_counted_by_page():
    store = FaultyStore(MemoryStore())
    for number in range(2001):
        store.put(f"{number:04d}", b"")
    store.requests.clear()
    list(store.list())
    assert store.requests == {"list": 3}
    next(store.list())
    assert store.requests == {"list": 4}


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_kill_before_or_after_a_write(moment):
    inner = MemoryStore()
    store = FaultyStore(inner, kill_at=2, moment=moment)
    store.put("a", b"1")
    with pytest.raises(Killed):
        store.put("b", b"2")
    assert inner.exists("b") == (moment == "after")
    for call in (lambda: store.get("a"), lambda: list(store.list()), lambda: store.delete("a")):
        with pytest.raises(Killed):
            call()


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_failure_before_or_after_a_write(moment):
    inner = MemoryStore()
    store = FaultyStore(inner, fail_at=frozenset({1}), moment=moment)
    with pytest.raises(StorageError, match="injected fault") as caught:
        store.create("a", b"1")
    assert caught.value.retryable
    assert inner.exists("a") == (moment == "after")
    store.put("b", b"2")


def test_ignored_conditions():
    store = FaultyStore(MemoryStore(), conditional=False)
    store.create("a", b"1")
    store.create("a", b"2")
    assert store.get("a") == b"2"
    assert not store.supports_conditional_create()


def test_kill_points():
    assert list(kill_points(2)) == [(1, "before"), (1, "after"), (2, "before"), (2, "after")]
