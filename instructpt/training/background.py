"""One piece of work in a thread of its own, whose error comes back to whoever waits for it."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Background:
    """Runs one thing at a time beside the steps: a checkpoint, the export."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, work: Callable[[], object], *, name: str) -> None:
        """Begin; what was begun before must have been waited for."""
        assert self._thread is None, "the work before is still running"

        def run() -> None:
            try:
                work()
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=run, name=name, daemon=True)
        self._thread.start()

    def wait(self, seconds: float | None = None) -> bool:
        """Whether nothing is running any more, at the latest after so many seconds.

        Raises:
            BaseException: What the work raised, once.
        """
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                return False
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return True
