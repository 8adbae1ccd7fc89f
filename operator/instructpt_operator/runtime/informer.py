"""Keeps a cache in step with an API server: list, watch from there on, list again where the watch lost the thread.

Rules R1 to R5. No answer of the server ends the thread; it waits ever longer and tries again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Protocol

from instructpt_operator.runtime.backoff import ExponentialBackoff
from instructpt_operator.runtime.client import ApiError, ResourceType
from instructpt_operator.runtime.store import Events, Indexer, InformerEvent, Object, Objects, Store

log = logging.getLogger(__name__)

WATCH_SECONDS = (240.0, 480.0)  # the server ends a watch after a time between these
READ_SECONDS = 75.0  # of silence; bookmarks come about once a minute
BACKOFF_SECONDS = (0.5, 20.0)  # times 1 to 1.5
MAX_WAIT_SECONDS = 30.0
SHORT_WATCH_SECONDS = 1.0  # a watch that ends sooner is followed by a wait, though it may have brought something
STOP_SECONDS = 2.0


class Stream(Protocol):
    """What a client's ``watch`` returns."""

    def __iter__(self) -> Iterator[dict[str, Any]]: ...  # noqa: D105

    def close(self) -> None:
        """End the stream, from any thread."""


class Client(Protocol):
    """What an informer needs of a client."""

    def pages(
        self, type_: ResourceType, namespace: str | None = None, *, label_selector: str | None = None
    ) -> Iterator[tuple[Objects, str]]:
        """All objects, page by page, with the version of the list."""
        ...

    def watch(
        self, type_: ResourceType, namespace: str | None = None, *, resource_version: str,
        label_selector: str | None = None, timeout_seconds: float, read_timeout_seconds: float,
    ) -> Stream:  # fmt: skip
        """Events from a version on."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class InformerStats:
    """What an informer did so far.

    Attributes:
        lists: Lists that were begun.
        watches: Watches that were begun.
        relists: Lists after the first that succeeded: the watch had lost the thread.
        errors: Lists and watches that failed, and handlers that raised.
        events: Changes handed to the handler.
    """

    lists: int = 0
    watches: int = 0
    relists: int = 0
    errors: int = 0
    events: int = 0


class Informer:
    """A cache of the objects of one type, kept by a thread of its own.

    Args:
        client: Lists and watches.
        type_: Of the objects.
        namespace: Theirs; all without one.
        label_selector: Of the objects.
        on_event: Told of every change, one at a time, after the cache has it. It must be quick (add a key to a queue)
            and is only a hint: what it raises is logged and forgotten.
        indexers: For ``store.by_index``.
        transform: Makes an object smaller before it is kept; ``managedFields`` never are.
        optional: The server may not know the type: then there are no objects, and it is asked again.
        on_answer: Called when the server answers again after it gave no answer at all.
        clock: Monotonic seconds.
        random: For jitter.
        wait: Sleeps, unless ``stop`` or ``hurry`` is called.
    """

    def __init__(
        self,
        client: Client,
        type_: ResourceType,
        *,
        namespace: str | None = None,
        label_selector: str | None = None,
        on_event: Callable[[InformerEvent], None] = lambda event: None,
        indexers: Mapping[str, Indexer] | None = None,
        transform: Callable[[Object], Object] | None = None,
        optional: bool = False,
        on_answer: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        random: Random | None = None,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        self.type = type_
        self.namespace = namespace
        self.store = Store(indexers)
        self._client = client
        self._selector = label_selector
        self._on_event = on_event
        self._transform = transform
        self._optional = optional
        self._on_answer = on_answer
        self._clock = clock
        self._random = Random() if random is None else random
        self._stopping, self._wake = threading.Event(), threading.Event()
        self._wait = self._wake.wait if wait is None else wait
        self._unanswered = False  # the last request got no answer at all
        self._backoff: ExponentialBackoff[None] = ExponentialBackoff(*BACKOFF_SECONDS)
        self._synced = threading.Event()
        # Held while a change is made and told, so that handlers hear of changes in the order of the cache.
        self._telling = threading.RLock()
        self._lock = threading.Lock()
        self._stats = InformerStats()
        self._stream: Stream | None = None
        self._version: str | None = None  # to watch from; None: list first
        self._active_at = self._heard_at = clock()
        self._thread = threading.Thread(target=self._run, name=f"informer-{type_.plural}", daemon=True)

    @property
    def synced(self) -> bool:
        """Whether the cache was complete once."""
        return self._synced.is_set()

    @property
    def alive(self) -> bool:
        """Whether the thread runs, or need not."""
        return self._thread.is_alive() or self._thread.ident is None or self._stopping.is_set()

    @property
    def stats(self) -> InformerStats:
        """What was done so far."""
        with self._lock:
            return self._stats

    def start(self) -> None:
        """Begin to list and watch."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and its watch; what the cache holds stays."""
        self._stopping.set()
        self._wake.set()
        with self._lock:
            stream = self._stream
        if stream is not None:
            stream.close()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(STOP_SECONDS)

    def wait_synced(self, timeout_seconds: float) -> bool:
        """Wait until the cache is complete; returns whether that came in time."""
        return self._synced.wait(timeout_seconds)

    def last_activity(self) -> float:
        """Seconds since the loop last did anything, be it in vain: what liveness looks at.

        It grows to at most the longest of a silent watch, a back-off and the timeout of a call.
        """
        with self._lock:
            return self._clock() - self._active_at

    def last_heard(self) -> float:
        """Seconds since the server last listed, or sent an event or bookmark: how stale the cache may be."""
        with self._lock:
            return self._clock() - self._heard_at

    def feed(self, obj: Object) -> None:
        """Put in an object that was just read or written, so that the next read of the cache sees it.

        The object must be one that the list would show: of the namespace and the labels asked for.
        """
        kept = self._shrink(obj)
        with self._telling:
            self._tell(self.store.feed(kept))

    def hurry(self) -> None:
        """Try again now, where it waits because the server gave no answer: it answers others again."""
        if self._unanswered:
            self._wake.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            began = self._clock()
            try:
                if self._version is None:
                    self._list()
                self._watch(self._version or "")
            except ApiError as error:
                self._failed(error)
            except Exception as error:  # the thread must outlive whatever a server or an object can provoke
                log.warning("informer of %s", self.type.plural, exc_info=True)
                self._failed(ApiError(0, "BadBody", f"{type(error).__name__}: {error}"))
            else:
                if self._clock() - began < SHORT_WATCH_SECONDS and not self._stopping.is_set():
                    self._pause(None)

    def _list(self) -> None:
        self._count("lists")
        self.store.begin_list()
        objects: Objects = []
        version = ""
        try:
            for items, page_version in self._client.pages(self.type, self.namespace, label_selector=self._selector):
                self._heard()
                self._answered()
                objects += [self._shrink(item) for item in items]
                version = page_version
        except ApiError as error:
            if self._is_unknown(error) and not (self.synced and len(self.store) == 0):
                self._swap([], "")
            raise
        self._swap(objects, version)
        self._version = version

    def _is_unknown(self, error: ApiError) -> bool:
        return self._optional and error.status == 404

    def _swap(self, objects: Objects, version: str) -> None:
        with self._telling:
            self._tell(self.store.replace(objects, version))
        if self.synced:
            self._count("relists")
        self._synced.set()

    def _watch(self, version: str) -> None:
        self._count("watches")
        stream = self._client.watch(
            self.type,
            self.namespace,
            resource_version=version,
            label_selector=self._selector,
            timeout_seconds=self._random.uniform(*WATCH_SECONDS),
            read_timeout_seconds=READ_SECONDS,
        )
        with self._lock:
            self._stream = stream
        self._active()
        self._answered()
        try:
            if self._stopping.is_set():
                return
            for event in stream:
                self._take(event["type"], event["object"])
                self._heard()
                self._backoff.forget(None)
        finally:
            with self._lock:
                self._stream = None
            stream.close()

    def _take(self, kind: str, obj: Object) -> None:
        if kind == "ERROR":
            # Most errors come with a version that the watch cannot go on from, so all lead to a list.
            raise ApiError(int(obj.get("code") or 0), "InStream", str(obj.get("message") or obj.get("reason"))[:200])
        version = obj["metadata"]["resourceVersion"]
        if kind in ("ADDED", "MODIFIED", "DELETED"):
            with self._telling:
                self._tell(self.store.change(kind, self._shrink(obj)))
        elif kind != "BOOKMARK":
            raise ApiError(0, "BadBody", f"an event of type {kind[:40]!r}")
        self._version = version

    def _tell(self, events: Events) -> None:
        for event in events:
            self._count("events")
            try:
                self._on_event(event)
            except Exception:
                self._count("errors")
                log.warning("handler of %s", self.type.plural, exc_info=True)

    def _shrink(self, obj: Object) -> Object:
        metadata = {name: value for name, value in obj["metadata"].items() if name != "managedFields"}
        kept = {**obj, "metadata": metadata}
        return kept if self._transform is None else self._transform(kept)

    def _failed(self, error: ApiError) -> None:
        if self._stopping.is_set():
            return
        self._count("errors")
        self._unanswered = error.status == 0 and error.reason not in ("BadBody", "InStream")
        # Go on from the same version only where the watch was not answered at all.
        silent = error.status in (0, 429) or error.status >= 500
        if not silent or error.reason in ("BadBody", "InStream"):
            self._version = None
        self._pause(error)

    def _pause(self, error: ApiError | None) -> None:
        delay = self._backoff.fail(None) * self._random.uniform(1.0, 1.5)
        if error is not None:
            delay = max(delay, min(error.retry_after or 0.0, MAX_WAIT_SECONDS))
            level = logging.DEBUG if self._is_unknown(error) else logging.WARNING
            log.log(level, "%s: %s; again in %.1f s", self.type.plural, error, delay)
        self._active()
        self._wait(delay)
        if self._wake.is_set() and not self._stopping.is_set():
            # A server that has just come back may refuse once or twice: no long wait again for that.
            self._backoff.forget(None)
            self._wake.clear()

    def _answered(self) -> None:
        if self._unanswered:
            self._unanswered = False
            self._on_answer()

    def _active(self) -> None:
        with self._lock:
            self._active_at = self._clock()

    def _heard(self) -> None:
        with self._lock:
            self._active_at = self._heard_at = self._clock()

    def _count(self, name: str) -> None:
        with self._lock:
            self._stats = replace(self._stats, **{name: getattr(self._stats, name) + 1})
