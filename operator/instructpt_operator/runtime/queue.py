"""A queue of keys to reconcile, with the semantics of client-go's workqueue.

A key says *that* something changed, never *what*: whoever gets it reads the whole state. So the queue may merge equal
keys, and does:

* a key that waits already is not added twice;
* a key that a worker holds is not handed to a second one; if it is added meanwhile, it comes back after ``done``;
* a retry waits, exponentially longer for its key and slower than a rate shared by all keys; a first add never waits.

There is no thread for the delayed keys: a worker in ``get`` sleeps until the earliest of them is due.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from instructpt_operator.runtime.backoff import ExponentialBackoff, TokenBucket

KeyT = TypeVar("KeyT", bound=Hashable)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStats:
    """What a queue holds at one moment.

    Attributes:
        ready: Keys that a worker could take now.
        delayed: Keys that wait for their time.
        processing: Keys that workers hold.
        dirty: Keys that will be handed out, ready or held and added again.
    """

    ready: int
    delayed: int
    processing: int
    dirty: int


class WorkQueue(Generic[KeyT]):
    """Hands keys to workers, each key to at most one worker at a time. Thread-safe.

    Args:
        clock: Monotonic seconds.
        backoff: How long the retries of one key wait; 5 ms to 300 s unless given.
        bucket: The rate that retries of all keys share; 10/s with a burst of 100 unless given.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        backoff: ExponentialBackoff[KeyT] | None = None,
        bucket: TokenBucket | None = None,
    ) -> None:
        self._clock = clock
        self._backoff: ExponentialBackoff[KeyT] = ExponentialBackoff() if backoff is None else backoff
        self._bucket = TokenBucket(clock) if bucket is None else bucket
        self._condition = threading.Condition()
        self._ready: deque[KeyT] = deque()
        self._dirty: set[KeyT] = set()
        self._processing: set[KeyT] = set()
        # Due times by key, and a heap over them. A key that got an earlier time leaves its old heap entry behind;
        # the dictionary tells which entry counts.
        self._due: dict[KeyT, float] = {}
        self._heap: list[tuple[float, int, KeyT]] = []
        self._serial = 0  # keeps the heap from comparing keys, and equal times in order of arrival
        self._closed = False

    def add(self, key: KeyT) -> None:
        """Ask for ``key`` to be reconciled. Ignored after ``shutdown``."""
        with self._condition:
            self._add(key)

    def add_after(self, key: KeyT, delay_seconds: float) -> None:
        """Ask for ``key`` to be reconciled after a delay. Of several delays the earliest counts."""
        with self._condition:
            self._add_after(key, delay_seconds)

    def retry(self, key: KeyT) -> float:
        """Ask for ``key`` again after a failure; returns the seconds it waits (client-go: ``AddRateLimited``)."""
        with self._condition:
            delay = max(self._backoff.fail(key), self._bucket.reserve())
            self._add_after(key, delay)
            return delay

    def forget(self, key: KeyT) -> None:
        """Clear the failures of ``key``: it succeeded, or is gone. Delays already given stay."""
        with self._condition:
            self._backoff.forget(key)

    def hurry(self) -> None:
        """Hand out every key that waits after a failure, and clear its failures: what they had in common is over."""
        with self._condition:
            for key in [key for key in (*self._due, *self._processing) if self._backoff.failures(key)]:
                self._backoff.forget(key)
                if self._due.pop(key, None) is not None:
                    self._add(key)

    def failures(self, key: KeyT) -> int:
        """How often ``key`` was retried since it was last forgotten."""
        with self._condition:
            return self._backoff.failures(key)

    def get(self, timeout_seconds: float | None = None) -> KeyT | None:
        """Take the next key; whoever takes it must call ``done``.

        Args:
            timeout_seconds: How long to wait for one; ``None`` waits for ever, 0 not at all.

        Returns:
            The key, or ``None`` when the time is over or the queue is shut down.
        """
        give_up_at = None if timeout_seconds is None else self._clock() + timeout_seconds
        with self._condition:
            while not self._closed:
                self._promote_due()
                if self._ready:
                    key = self._ready.popleft()
                    self._dirty.discard(key)
                    self._processing.add(key)
                    return key
                now = self._clock()
                if give_up_at is not None and now >= give_up_at:
                    return None
                wake_at = min((at for at in (give_up_at, self._next_due()) if at is not None), default=None)
                self._condition.wait(None if wake_at is None else max(0.0, wake_at - now))
            return None

    def done(self, key: KeyT) -> None:
        """Give ``key`` back. If it was added meanwhile, it is ready again.

        Raises:
            ValueError: ``key`` is not being processed.
        """
        with self._condition:
            if key not in self._processing:
                raise ValueError(f"key {key!r} is not being processed: done() without get(), or twice")
            self._processing.remove(key)
            if self._closed:
                self._condition.notify_all()
            elif key in self._dirty:
                self._make_ready(key)

    def shutdown(self) -> None:
        """Refuse new keys and hand out no more; every waiting ``get`` returns ``None``.

        Unlike client-go, keys that still wait are dropped rather than drained: whoever leads next lists all objects
        anyway, and this process has ten seconds.
        """
        with self._condition:
            self._closed = True
            self._ready.clear()
            self._dirty.clear()
            self._due.clear()
            self._heap.clear()
            self._condition.notify_all()

    def wait_idle(self, timeout_seconds: float) -> bool:
        """After ``shutdown``: wait until no worker holds a key; returns whether that came in time."""
        with self._condition:
            return self._condition.wait_for(lambda: self._closed and not self._processing, timeout_seconds)

    def stats(self) -> QueueStats:
        """What the queue holds now; delayed keys that are due count as delayed until somebody asks for one."""
        with self._condition:
            return QueueStats(
                ready=len(self._ready),
                delayed=len(self._due),
                processing=len(self._processing),
                dirty=len(self._dirty),
            )

    def _add(self, key: KeyT) -> None:
        if self._closed or key in self._dirty:
            return
        self._dirty.add(key)
        if key not in self._processing:
            self._make_ready(key)

    def _add_after(self, key: KeyT, delay_seconds: float) -> None:
        if self._closed:
            return
        if delay_seconds <= 0:
            self._add(key)
            return
        due = self._clock() + delay_seconds
        known = self._due.get(key)
        if known is not None and known <= due:
            return
        earliest = self._next_due()
        self._due[key] = due
        self._serial += 1
        heapq.heappush(self._heap, (due, self._serial, key))
        if earliest is None or due < earliest:
            # All of them: one that is about to give up would take the only notice with it.
            self._condition.notify_all()

    def _make_ready(self, key: KeyT) -> None:
        self._ready.append(key)
        self._condition.notify()

    def _next_due(self) -> float | None:
        while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def _promote_due(self) -> None:
        now = self._clock()
        while (due := self._next_due()) is not None and due <= now:
            key = heapq.heappop(self._heap)[2]
            del self._due[key]
            self._add(key)
