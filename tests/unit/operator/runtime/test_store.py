"""The cache by itself: in whatever order events come, handlers can follow, and a list puts things right."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructpt_operator.runtime import store as store_module
from instructpt_operator.runtime.store import InformerEvent, Store, controller_uid, is_older

from .conftest import Witness


def thing(name: str, uid: str, version: int | str, **fields: Any) -> dict[str, Any]:
    return {"metadata": {"namespace": "n", "name": name, "uid": uid, "resourceVersion": str(version)}, **fields}


def state(store: Store) -> dict[str, tuple[str, str]]:
    return {o["metadata"]["name"]: (o["metadata"]["uid"], o["metadata"]["resourceVersion"]) for o in store.list()}


class Truth:
    """A server's history of a few names: what a watch would show, and what a list would."""

    def __init__(self, steps: list[tuple[str, bool]]) -> None:
        self.version = 10
        self.objects: dict[str, dict[str, Any]] = {}
        self.history: list[tuple[str, dict[str, Any]]] = []
        for name, remove in steps:
            self.version += 1
            known = self.objects.get(name)
            if known is None:
                self._tell("ADDED", thing(name, f"uid-{self.version}", self.version))
            elif remove:
                del self.objects[name]
                self.history.append(("DELETED", thing(name, known["metadata"]["uid"], self.version)))
            else:
                self._tell("MODIFIED", thing(name, known["metadata"]["uid"], self.version))

    def _tell(self, kind: str, obj: dict[str, Any]) -> None:
        self.objects[obj["metadata"]["name"]] = obj
        self.history.append((kind, obj))


steps = st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), min_size=1, max_size=25)


def tell(witness: Witness, events: list[InformerEvent]) -> None:
    for event in events:
        witness(event)


@given(steps=steps, data=st.data())
def test_f2_cache_is_the_servers_after_one_list_whatever_the_watch_showed(
    steps: list[tuple[str, bool]], data: st.DataObject
) -> None:
    truth = Truth(steps)
    shown = data.draw(st.lists(st.sampled_from(truth.history), max_size=40))  # dropped, doubled, in any order
    store, witness = Store({"name": lambda obj: [obj["metadata"]["name"]]}), Witness()
    for kind, obj in shown:
        fed = data.draw(st.booleans()) and kind != "DELETED"
        tell(witness, store.feed(obj) if fed else store.change(kind, obj))
        witness.check(store)
    store.begin_list()
    tell(witness, store.replace(truth.objects.values(), str(truth.version)))
    witness.check(store)
    assert state(store) == state_of(truth)
    assert {name: len(store.by_index("name", name)) for name in "abc"} == {
        name: int(name in truth.objects) for name in "abc"
    }


@given(steps=steps, data=st.data())
def test_f2_order_does_not_matter_where_every_event_comes_at_least_once(
    steps: list[tuple[str, bool]], data: st.DataObject
) -> None:
    truth = Truth(steps)
    doubles = data.draw(st.lists(st.sampled_from(truth.history), max_size=10))
    shown = data.draw(st.permutations(truth.history + doubles))
    store, witness = Store(), Witness()
    for kind, obj in shown:
        tell(witness, store.change(kind, obj))
    witness.check(store)
    assert state(store) == state_of(truth)


@given(steps=steps, data=st.data())
def test_f2_versions_of_a_uid_never_go_back_without_a_list(steps: list[tuple[str, bool]], data: st.DataObject) -> None:
    truth = Truth(steps)
    store = Store()
    newest: dict[str, int] = {}
    for kind, obj in data.draw(st.lists(st.sampled_from(truth.history), max_size=40)):
        for event in store.change(kind, obj):
            meta = event.object["metadata"]
            if event.kind != "DELETED" or meta is obj["metadata"]:
                assert int(meta["resourceVersion"]) > newest.get(meta["uid"], 0)
            newest[meta["uid"]] = int(meta["resourceVersion"])


def state_of(truth: Truth) -> dict[str, tuple[str, str]]:
    return {name: (obj["metadata"]["uid"], obj["metadata"]["resourceVersion"]) for name, obj in truth.objects.items()}


def test_r2_list_counts_even_where_it_is_older() -> None:
    store = Store()
    store.replace([thing("a", "u", 50), thing("b", "v", 51)], "60")
    events = store.replace([thing("a", "u", 40)], "45")  # etcd was restored from a backup
    assert [(event.kind, event.object["metadata"]["name"]) for event in events] == [("DELETED", "b"), ("MODIFIED", "a")]
    assert state(store) == {"a": ("u", "40")}


def test_r2_object_fed_before_a_list_began_is_not_spared_by_it() -> None:
    store = Store()
    store.feed(thing("a", "u", 50))
    store.begin_list()
    assert [event.kind for event in store.replace([], "45")] == ["DELETED"]


def test_r2_list_brings_back_what_a_false_event_buried() -> None:
    store = Store()
    store.change("DELETED", thing("a", "u", 50))
    store.replace([thing("a", "u", 40)], "60")
    assert [event.kind for event in store.change("MODIFIED", thing("a", "u", 45))] == ["MODIFIED"]


def test_r3_delete_of_an_earlier_object_leaves_the_later_one_of_that_name() -> None:
    store = Store()
    store.change("ADDED", thing("a", "new", 20))
    assert store.change("DELETED", thing("a", "old", 15)) == []
    assert store.change("MODIFIED", thing("a", "old", 14)) == []
    assert state(store) == {"a": ("new", "20")}


def test_object_that_leaves_the_selector_and_comes_back_is_seen_again() -> None:
    store = Store()
    store.change("ADDED", thing("a", "u", 10))
    store.change("DELETED", thing("a", "u", 11))
    assert store.change("MODIFIED", thing("a", "u", 10)) == []
    assert [event.kind for event in store.change("ADDED", thing("a", "u", 12))] == ["ADDED"]


@pytest.mark.parametrize("version", ["", "x12", "1.5"])
def test_version_that_is_no_number_counts_as_new(version: str) -> None:
    assert not is_older(version, "5")
    assert not is_older("5", version)
    store = Store()
    store.change("ADDED", thing("a", "u", 10))
    assert [event.kind for event in store.change("MODIFIED", thing("a", "u", version))] == ["MODIFIED"]
    store.change("DELETED", thing("a", "u", 30))
    assert [event.kind for event in store.change("ADDED", thing("a", "u", version))] == ["ADDED"]


def test_versions_are_compared_as_numbers() -> None:
    assert is_older("99", "100")
    assert not is_older("100", "99")
    assert not is_older("100", "100")


def test_memory_of_what_is_gone_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "TOMBSTONES", 10)
    store = Store()
    for number in range(100):
        store.change("ADDED", thing("a", f"u{number}", 2 * number))
        store.change("DELETED", thing("a", f"u{number}", 2 * number + 1))
    assert len(store._gone) == 10
    assert store.change("ADDED", thing("a", "u99", 198)) == []


def test_indexer_that_fails_leaves_the_cache_whole() -> None:
    store = Store({"size": lambda obj: [obj["size"]]})
    store.change("ADDED", thing("a", "u", 1, size="s"))
    with pytest.raises(KeyError):
        store.change("MODIFIED", thing("a", "u", 2))
    assert [o["metadata"]["resourceVersion"] for o in store.by_index("size", "s")] == ["1"]
    assert state(store) == {"a": ("u", "1")}
    store.change("DELETED", thing("a", "u", 3))
    assert store.by_index("size", "s") == []


def test_children_are_found_by_the_owner_that_controls_them() -> None:
    owned = thing("a", "u", 1)
    owned["metadata"]["ownerReferences"] = [{"uid": "one"}, {"uid": "two", "controller": True}]
    assert controller_uid(owned) == ("two",)
    assert controller_uid(thing("b", "v", 2)) == ()


def test_cluster_scoped_objects_have_an_empty_namespace() -> None:
    store = Store()
    store.change("ADDED", {"metadata": {"name": "a", "uid": "u", "resourceVersion": "1"}})
    assert store.get("", "a") is not None
    assert store.list("n") == []
