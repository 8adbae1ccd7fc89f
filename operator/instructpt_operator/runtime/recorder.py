"""Kubernetes Events through events.k8s.io/v1, with repeats counted in a series instead of sent anew."""

from __future__ import annotations

import datetime
import logging
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from instructpt_operator.runtime.client import ApiError, ResourceType

EVENTS = ResourceType(api_version="events.k8s.io/v1", kind="Event", plural="events")
SERIES_SECONDS = 360.0
"""An event that comes again within this time of the last is counted; after it, it is a new one. As client-go does."""
NOTE_BYTES = 1024
KEYS = 4096

logger = logging.getLogger(__name__)

Key = tuple[str, str, str, str]
"""Uid of the object, type, reason, note."""


class EventClient(Protocol):
    """The two methods of ``KubeClient`` that the recorder needs."""

    def create(self, type_: ResourceType, obj: Mapping[str, Any]) -> dict[str, Any]:
        """Create an object."""
        ...

    def merge_patch(
        self, type_: ResourceType, namespace: str | None, name: str, body: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Change fields of an object."""
        ...


@dataclass(slots=True, kw_only=True)
class _Series:
    name: str
    namespace: str
    count: int
    last: float


class EventRecorder:
    """Sends events. It never raises and remembers a bounded number of them. Thread-safe.

    Two threads that send the same event of one object at the same moment may both create it; a queue that hands a key
    to one worker at a time keeps them from it.

    Args:
        client: Sends the requests.
        component: Who reports, such as ``instructpt.dev/operator``.
        instance: Which of its processes: the pod's name.
        clock: Monotonic seconds.
        now: The wall clock, for what people read.
    """

    def __init__(
        self,
        client: EventClient,
        *,
        component: str,
        instance: str,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
    ) -> None:
        self._client = client
        self._component, self._instance = component[:253], instance[:128]
        self._clock, self._now = clock, now
        self._lock = threading.Lock()
        self._seen: OrderedDict[Key, _Series] = OrderedDict()  # the one that was sent longest ago comes first
        self._failures = 0

    @property
    def failures(self) -> int:
        """How many events could not be sent."""
        return self._failures

    def record(
        self, regarding: Mapping[str, Any], *, type: str, reason: str, note: str, action: str = "Reconcile"
    ) -> bool:
        """Send one event about an object; returns whether the API server took it.

        Args:
            regarding: The object, as it was read.
            type: ``Normal`` or ``Warning``.
            reason: One word in CamelCase.
            note: For people; cut at 1,024 bytes.
            action: What was being done.
        """
        note = _cut(note)
        key = (regarding["metadata"]["uid"], type, reason, note)
        try:
            if not self._again(key):
                self._send(key, regarding, action)
            return True
        except Exception as error:  # an event is a courtesy: nothing may fail for it
            with self._lock:
                self._failures += 1
            logger.warning("event %s about %s not sent: %s", reason, regarding["metadata"].get("name"), error)
            return False

    def _again(self, key: Key) -> bool:
        """Count one more of a series; whether there was one to count in."""
        with self._lock:
            now = self._clock()
            while self._seen and now - next(iter(self._seen.values())).last > SERIES_SECONDS:
                self._seen.popitem(last=False)
            series = self._seen.get(key)
            if series is None:
                return False
            series.count += 1
            series.last = now
            self._seen.move_to_end(key)
            body = {"series": {"count": series.count, "lastObservedTime": self._time()}}
        try:
            self._client.merge_patch(EVENTS, series.namespace, series.name, body)
        except ApiError as error:
            if error.status != 404:
                raise
            with self._lock:  # the API server forgets events after a while
                self._seen.pop(key, None)
            return False
        return True

    def _send(self, key: Key, regarding: Mapping[str, Any], action: str) -> None:
        meta = regarding["metadata"]
        # Events about objects without a namespace live in "default", as those of Kubernetes itself do.
        namespace = meta.get("namespace") or "default"
        name = f"{meta['name'][:220]}.{uuid.uuid4().hex[:16]}"
        _, type_, reason, note = key
        self._client.create(EVENTS, {
            "apiVersion": EVENTS.api_version,
            "kind": EVENTS.kind,
            "metadata": {"name": name, "namespace": namespace},
            "eventTime": self._time(),
            "reportingController": self._component,
            "reportingInstance": self._instance,
            "action": action,
            "type": type_,
            "reason": reason,
            "note": note,
            "regarding": {
                "apiVersion": regarding["apiVersion"], "kind": regarding["kind"], "name": meta["name"],
                "uid": meta["uid"], "resourceVersion": meta.get("resourceVersion", ""),
                **({"namespace": meta["namespace"]} if meta.get("namespace") else {}),
            },
        })  # fmt: skip
        with self._lock:
            self._seen[key] = _Series(name=name, namespace=namespace, count=1, last=self._clock())
            self._seen.move_to_end(key)
            while len(self._seen) > KEYS:
                self._seen.popitem(last=False)

    def _time(self) -> str:
        return self._now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _cut(note: str) -> str:
    """At most 1,024 bytes, without half a character at the end."""
    data = note.encode()
    if len(data) <= NOTE_BYTES:
        return note
    return data[: NOTE_BYTES - 3].decode(errors="ignore") + "..."
