"""The next step's batches, made in a thread while the step before is computed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """Makes one thing ahead; what it gives is that of the step asked for, whatever the order.

    Args:
        make: Gives what belongs to a step; called in a thread, one step at a time.
        end: The first step that there is not.
    """

    def __init__(self, make: Callable[[int], T], end: int) -> None:
        self._make, self._end = make, end
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self._next: tuple[int, Future[T]] | None = None

    def get(self, step: int) -> T:
        """What belongs to a step, and begin with the one after it.

        Raises:
            Exception: What making it raised.
        """
        if self._next is None or self._next[0] != step:
            self._next = (step, self._pool.submit(self._make, step))
        found = self._next[1].result()
        self._next = (step + 1, self._pool.submit(self._make, step + 1)) if step + 1 < self._end else None
        return found

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown(wait=True, cancel_futures=True)
