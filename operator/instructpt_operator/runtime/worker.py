"""Threads that reconcile the keys of a queue (R7), and end in good order (R21)."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from instructpt_operator.runtime.queue import WorkQueue

log = logging.getLogger(__name__)

KeyT = TypeVar("KeyT", bound=Hashable)

WORKERS = 5
STOP_SECONDS = 10.0
IDLE_SECONDS = 10.0  # after which a worker without a key shows that it still lives

SUCCESS = "success"
REQUEUE = "requeue"
ERROR = "error"


class RetryLater(Exception):  # noqa: N818 - no error: the state was not what the visit assumed
    """Raised by a reconcile that is to be repeated with back-off; logged in a line, without a traceback."""


class WorkerPool(Generic[KeyT]):
    """Reconciles keys, each in one worker at a time, as the queue sees to it.

    Args:
        queue: Where keys come from.
        reconcile: Does the work for a key; returns after how many seconds the key is to come back, if it must. What it
            raises is logged, and the key comes back as the queue's back-off says.
        workers: How many threads.
        name: Of the threads.
        observe: Told of every reconcile: its result (``success``, ``requeue`` or ``error``) and its seconds.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        queue: WorkQueue[KeyT],
        reconcile: Callable[[KeyT], float | None],
        *,
        workers: int = WORKERS,
        name: str = "worker",
        observe: Callable[[str, float], None] = lambda result, seconds: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers={workers} must be at least 1")
        self._queue = queue
        self._reconcile = reconcile
        self._name = name
        self._observe = observe
        self._clock = clock
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._results: Counter[str] = Counter()
        self._active_at = [clock()] * workers
        self._threads = [
            threading.Thread(target=self._run, args=(number,), name=f"{name}-{number}", daemon=True)
            for number in range(workers)
        ]

    @property
    def results(self) -> Counter[str]:
        """How many reconciles ended how; a copy."""
        with self._lock:
            return self._results.copy()

    @property
    def alive(self) -> bool:
        """Whether every thread runs, or need not: not started yet (a standby), or told to stop."""
        if self._stopping.is_set():
            return True
        return all(thread.ident is None or thread.is_alive() for thread in self._threads)

    def last_activity(self) -> float:
        """Seconds since the worker that is longest at one thing began it; 0 unless the pool runs."""
        if self._stopping.is_set() or self._threads[0].ident is None:
            return 0.0
        with self._lock:
            return self._clock() - min(self._active_at)

    def start(self) -> None:
        """Begin to take keys."""
        now = self._clock()
        with self._lock:
            self._active_at = [now] * len(self._threads)
        for thread in self._threads:
            thread.start()

    def stop(self, timeout_seconds: float = STOP_SECONDS) -> bool:
        """Take no more keys and wait for what runs; returns whether all of it ended in time.

        The queue is shut down with it: whoever works next starts from a list of all objects.
        """
        self._stopping.set()
        self._queue.shutdown()
        ended = self._queue.wait_idle(timeout_seconds)
        if ended:
            for thread in self._threads:
                if thread.ident is not None:
                    thread.join(1.0)
        return ended

    def _run(self, number: int) -> None:
        while not self._stopping.is_set():
            with self._lock:
                self._active_at[number] = self._clock()
            key = self._queue.get(IDLE_SECONDS)
            if key is None:
                continue
            with self._lock:
                self._active_at[number] = self._clock()
            try:
                self._visit(key)
            finally:
                self._queue.done(key)

    def _visit(self, key: KeyT) -> None:
        began = self._clock()
        try:
            delay = self._reconcile(key)
        except RetryLater as why:
            result = REQUEUE
            wait = self._queue.retry(key)
            log.info("%s: %s again in %.1f s: %s", self._name, key, wait, why)
        except Exception:
            result = ERROR
            wait = self._queue.retry(key)
            log.warning("%s: %s failed, again in %.1f s", self._name, key, wait, exc_info=True)
        else:
            result = SUCCESS if delay is None else REQUEUE
            self._queue.forget(key)
            if delay is not None:
                self._queue.add_after(key, delay)
        with self._lock:
            self._results[result] += 1
        try:
            self._observe(result, self._clock() - began)
        except Exception:
            log.warning("%s: observer failed", self._name, exc_info=True)
