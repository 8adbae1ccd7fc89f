"""Waiting for a storage that is away: the call is made again, training goes on beside it, and the alarm shows."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from instructpt.errors import StorageError

log = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE_SECONDS = 3600.0
"""How long a storage may be away before what waits for it is given up."""
_FIRST_SECONDS, _MOST_SECONDS = 1.0, 30.0


class Patience:
    """Calls again what failed in a way that may pass, with waits that double from 1 s to 30 s.

    Args:
        tell: Is told what is wrong when it begins to be, and ``None`` when it is over.
        seconds: How long to go on.
        wait: Sleeps for so many seconds.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        tell: Callable[[str | None], object] = lambda text: None,
        *,
        seconds: float = PATIENCE_SECONDS,
        wait: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tell, self._seconds, self._wait, self._clock = tell, seconds, wait, clock

    def __call__(self, what: str, call: Callable[[], T]) -> T:
        """The call's result.

        Args:
            what: Is being done, for the message: ``checkpoint step-8 cannot be stored``.
            call: May be made again after it failed.

        Raises:
            StorageError: It cannot be cured by waiting, or the storage was away for too long.
        """
        began, wait, told = self._clock(), _FIRST_SECONDS, False
        while True:
            try:
                result = call()
            except StorageError as error:
                if not error.retryable or self._clock() - began + wait > self._seconds:
                    raise
                log.warning("%s (%s); it is tried again in %.0f s", what, error, wait)
                if not told:
                    self._tell(f"{what} for now, and is tried again: {error}")
                    told = True
                self._wait(wait)
                wait = min(_MOST_SECONDS, 2 * wait)
            else:
                if told:
                    log.info("storage is back")
                    self._tell(None)
                return result
