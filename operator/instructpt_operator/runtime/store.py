"""What an informer knows: objects by name, in step with the server and never behind what was already seen.

Objects are shared, not copied: whoever reads one does not change it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Object = dict[str, Any]
Objects = list[Object]
Indexer = Callable[[Object], Iterable[str]]

TOMBSTONES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class InformerEvent:
    """A change of the cache. Of one uid a handler sees ADDED, then MODIFIED any number of times, then DELETED.

    Attributes:
        object: The new state; of a DELETED object the last one that is known.
        old: What the cache held before; ``None`` for ADDED.
    """

    kind: Literal["ADDED", "MODIFIED", "DELETED"]
    object: Object
    old: Object | None = None


Events = list[InformerEvent]


def controller_uid(obj: Object) -> tuple[str, ...]:
    """An indexer: the uid of the owner that controls an object."""
    owners = obj["metadata"].get("ownerReferences") or ()
    return tuple(owner["uid"] for owner in owners if owner.get("controller"))


def is_older(version: str, than: str) -> bool:
    """Whether one resource version comes before another; one that is no number counts as new."""
    return version.isdecimal() and than.isdecimal() and int(version) < int(than)


_Key = tuple[str, str]


def _key(obj: Object) -> _Key:
    return str(obj["metadata"].get("namespace") or ""), str(obj["metadata"]["name"])


def _uid(obj: Object) -> str:
    return str(obj["metadata"].get("uid") or "")


def _version(obj: Object) -> str:
    return str(obj["metadata"].get("resourceVersion") or "")


class Store:
    """A cache of objects with indexes. Thread-safe.

    Changes are made by an informer, one at a time; each returns what handlers are to be told.

    Args:
        indexers: Functions that name the values under which an object is found by ``by_index``.
    """

    def __init__(self, indexers: Mapping[str, Indexer] | None = None) -> None:
        self._lock = threading.Lock()
        self._objects: dict[_Key, Object] = {}
        self._indexers = dict(indexers or {})
        self._indexes: dict[str, dict[str, dict[_Key, None]]] = {name: {} for name in self._indexers}
        self._values: dict[_Key, dict[str, tuple[str, ...]]] = {}  # under which each object is in the indexes
        # Versions at which uids were seen to be gone: a late event or a late read must not bring them back.
        self._gone: OrderedDict[str, str] = OrderedDict()
        self._fed: set[_Key] = set()  # since the last list began

    def get(self, namespace: str, name: str) -> Object | None:
        """One object; ``namespace`` is empty where it has none."""
        with self._lock:
            return self._objects.get((namespace, name))

    def list(self, namespace: str | None = None) -> Objects:
        """All objects, or those of one namespace."""
        with self._lock:
            return [obj for key, obj in self._objects.items() if namespace is None or key[0] == namespace]

    def by_index(self, index: str, value: str) -> Objects:
        """The objects for which the indexer named ``index`` gives ``value``."""
        with self._lock:
            return [self._objects[key] for key in self._indexes[index].get(value, ())]

    def __len__(self) -> int:
        with self._lock:
            return len(self._objects)

    def begin_list(self) -> None:
        """The server is about to be asked for all objects; only what is fed from now on may be newer than its list."""
        with self._lock:
            self._fed.clear()

    def replace(self, objects: Iterable[Object], version: str) -> Events:
        """Make the cache what the server listed at ``version``; that counts even where it is older."""
        with self._lock:
            events: Events = []
            listed = {_key(obj): obj for obj in objects}
            for key, known in tuple(self._objects.items()):
                if key not in listed and not (key in self._fed and is_older(version, _version(known))):
                    self._bury(known, version)
                    events.append(self._remove(key, known))
            for key, obj in listed.items():
                self._gone.pop(_uid(obj), None)
                fed = self._objects.get(key) if key in self._fed else None
                if fed is None or not is_older(_version(obj), _version(fed)):
                    events += self._put(key, obj)
            return events

    def change(self, kind: str, obj: Object) -> Events:
        """Take in an event of a watch; nothing comes of one that is older than what is known, or known already."""
        with self._lock:
            key, known = _key(obj), self._objects.get(_key(obj))
            if kind != "DELETED":
                return self._put(key, obj) if self._is_news(obj, known) else []
            self._bury(obj, _version(obj))
            if known is None or _uid(known) != _uid(obj) or is_older(_version(obj), _version(known)):
                return []
            return [self._remove(key, obj)]

    def feed(self, obj: Object) -> Events:
        """Take in an object that was just read or written: reads see it before the watch shows it."""
        with self._lock:
            key = _key(obj)
            if not self._is_news(obj, self._objects.get(key)):
                return []
            self._fed.add(key)
            return self._put(key, obj)

    def _is_news(self, obj: Object, known: Object | None) -> bool:
        version = _version(obj)
        buried_at = self._gone.get(_uid(obj))
        if buried_at is not None and (version == buried_at or is_older(version, buried_at)):
            return False
        return known is None or not is_older(version, _version(known))

    def _put(self, key: _Key, obj: Object) -> Events:
        known = self._objects.get(key)
        if known is not None and _uid(known) == _uid(obj):
            if _version(known) == _version(obj):
                return []
            self._set(key, obj)
            return [InformerEvent(kind="MODIFIED", object=obj, old=known)]
        events = []
        if known is not None:
            # The name is that of another object now.
            self._bury(known, _version(obj))
            events.append(self._remove(key, known))
        self._set(key, obj)
        return [*events, InformerEvent(kind="ADDED", object=obj)]

    def _remove(self, key: _Key, last: Object) -> InformerEvent:
        known = self._objects.pop(key)
        self._unindex(key)
        return InformerEvent(kind="DELETED", object=last, old=known)

    def _bury(self, obj: Object, version: str) -> None:
        uid = _uid(obj)
        if uid and not is_older(version, self._gone.get(uid, "0")):
            self._gone[uid] = version
            self._gone.move_to_end(uid)
            if len(self._gone) > TOMBSTONES:
                self._gone.popitem(last=False)

    def _set(self, key: _Key, obj: Object) -> None:
        # First, as an indexer may fail over an odd object, and the cache must not be left half changed.
        values = {name: tuple(indexer(obj)) for name, indexer in self._indexers.items()}
        self._unindex(key)
        self._objects[key] = obj
        self._values[key] = values
        for name, found in values.items():
            for value in found:
                self._indexes[name].setdefault(value, {})[key] = None

    def _unindex(self, key: _Key) -> None:
        for name, values in self._values.pop(key, {}).items():
            index = self._indexes[name]
            for value in values:
                keys = index.get(value, {})
                keys.pop(key, None)
                if not keys:
                    index.pop(value, None)
