"""Objects read ahead: a bounded pool of threads fetches the next ones while the caller works on one.

A request to S3 takes tens of milliseconds whatever its size, so objects that are read one after the other are read at
the speed of the network's delay. Here up to :data:`THREADS` requests are under way, each holding at most
:data:`SHARE_BYTES` that the caller has not taken yet. The order is that of the names, and what is read is what
``Store.open`` gives: one consistent answer an object, taken up again where a connection broke.

A request also takes a millisecond or two of Python, which threads only take turns at: against a server next door they
cost more than they hide. So how many are under way follows from what requests are seen to wait (:class:`Width`).
"""

from __future__ import annotations

import io
import itertools
import math
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

from instructpt.storage.base import Store
from instructpt.storage.credentials import POOL_CONNECTIONS
from instructpt.storage.piped import CHUNK, Begun, Piped, Readable
from instructpt.storage.s3 import S3Store

THREADS = POOL_CONNECTIONS
"""Requests under way: as many as the client of a process keeps connections."""

SHARE_BYTES = 2 << 20
"""Bytes of one object that may wait for the caller."""

_SEEN = 3
"""Requests that are looked at before threads are started."""
_WINDOW = 9
_T = TypeVar("_T")
_R = TypeVar("_R")


class Width:
    """How many objects are fetched at a time; 0 reads each on the spot. Decides only.

    Args:
        most: Never more.
    """

    def __init__(self, most: int = THREADS) -> None:
        self._most = most
        self._requests: deque[tuple[float, float]] = deque(maxlen=_WINDOW)
        self._lock = threading.Lock()
        self.value = 0

    def took(self, seconds: float, busy_seconds: float, *, is_large: bool) -> None:
        """A request took so long, of which this process worked so long.

        Working threads wait for each other as they do for the network, so what is seen never calls for fewer.

        Args:
            seconds: Until the first bytes.
            busy_seconds: Of them, at work in this process.
            is_large: More bytes followed, which can come while the caller works on the first.
        """
        with self._lock:
            self._requests.append((seconds, busy_seconds))
            if len(self._requests) < _SEEN and not is_large:
                return
            taken, busy = (statistics.median(column) for column in zip(*self._requests, strict=True))
            wanted = math.ceil(taken / max(busy, 1e-6))
            if is_large or taken >= 2 * busy:
                self.value = max(self.value, min(self._most, max(2, wanted)))


class AheadStream(Piped):
    """One object that a thread fetches and the caller reads. Only :class:`ReadAhead` makes it.

    Args:
        limit: Bytes that may wait.
        width: Is told how long the request took.
    """

    def __init__(self, limit: int, width: Width) -> None:
        super().__init__(limit)
        self._width = width

    def fill(self, store: Store, key: str) -> None:
        """Fetch the object; the body of the thread. What goes wrong is raised where the caller reads."""
        try:
            if self._abandoned:
                return
            began, at_work = time.perf_counter(), time.thread_time()
            with store.open(key) as stream:
                data = stream.read(CHUNK)
                self._width.took(time.perf_counter() - began, time.thread_time() - at_work, is_large=len(data) == CHUNK)
                if data and self._give(data):
                    self._pass_on(stream)
        except BaseException as error:  # whatever it is, the caller's thread raises it
            self._error = error
        finally:
            self._end()


class ReadAhead:
    """Streams over objects, in the order given; a context manager that ends its threads.

    Args:
        store: Where they lie.
        keys: Their keys; taken as they are needed, so that the list may be long or come slowly.
        width: Objects fetched at a time.
        share_bytes: Bytes of each that may wait.
    """

    def __init__(
        self, store: Store, keys: Iterable[str], *, width: Width | None = None, share_bytes: int = SHARE_BYTES
    ) -> None:
        self._store = store
        self._keys = iter(keys)
        self._width = width or Width()
        self._share = share_bytes
        self._streams: deque[AheadStream] = deque()
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="read-ahead")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in self._streams:
            stream.close()
        self._pool.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[Readable]:
        """The streams; the one before is closed when the next is asked for."""
        while True:
            if not self._width.value:
                key = next(self._keys, None)
                if key is None:
                    return
                yield from self._on_the_spot(key)
                continue
            # A thread takes the streams in this order, so the caller's is always under way.
            for key in itertools.islice(self._keys, self._width.value - len(self._streams)):
                stream = AheadStream(self._share, self._width)
                self._streams.append(stream)
                self._pool.submit(stream.fill, self._store, key)
            if not self._streams:
                return
            yield self._streams[0]
            self._streams.popleft().close()

    def _on_the_spot(self, key: str) -> Iterator[Readable]:
        began, at_work = time.perf_counter(), time.thread_time()
        with self._store.open(key) as stream:
            data = stream.read(CHUNK)
            is_large = len(data) == CHUNK
            self._width.took(time.perf_counter() - began, time.thread_time() - at_work, is_large=is_large)
            yield Begun(data, stream) if is_large else io.BytesIO(data)


def open_all(store: Store, keys: Iterable[str]) -> Generator[Readable, None, None]:
    """Open objects one after the other, in order; those on S3 are read ahead. Close it to end the threads.

    A folder needs none of it: the kernel reads ahead.
    """
    if not isinstance(store, S3Store):
        for key in keys:
            with store.open(key) as stream:
                yield stream
        return
    with ReadAhead(store, keys) as streams:
        yield from streams


def map_ahead(store: Store, call: Callable[[_T], _R], items: Iterable[_T]) -> Iterator[_R]:
    """``call`` of every item, in order; on S3 with up to :data:`THREADS` requests under way.

    Raises:
        InstructPTError: What the first call that failed raised.
    """
    if not isinstance(store, S3Store):
        yield from map(call, items)
        return
    rest = iter(items)
    futures: deque[Future[_R]] = deque()
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="map-ahead")
    try:
        while True:
            for item in itertools.islice(rest, 2 * THREADS - len(futures)):
                futures.append(pool.submit(call, item))
            if not futures:
                return
            yield futures.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
