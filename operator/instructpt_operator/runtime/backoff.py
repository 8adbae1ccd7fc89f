"""How long a retry waits: exponentially longer per key, and slower than a rate that all keys share."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

KeyT = TypeVar("KeyT", bound=Hashable)

BASE_SECONDS = 0.005
MAX_SECONDS = 300.0
RETRIES_PER_SECOND = 10.0
RETRY_BURST = 100

_MAX_EXPONENT = 64  # keeps 2**n a finite float for a key that fails for years


class ExponentialBackoff(Generic[KeyT]):
    """Doubles the wait of a key with every failure until the key is forgotten. Not thread-safe.

    Args:
        base_seconds: The wait after the first failure.
        max_seconds: The longest wait.
    """

    def __init__(self, base_seconds: float = BASE_SECONDS, max_seconds: float = MAX_SECONDS) -> None:
        if not 0 < base_seconds <= max_seconds:
            raise ValueError(f"base_seconds={base_seconds} must be above 0 and at most max_seconds={max_seconds}")
        self._base = base_seconds
        self._max = max_seconds
        self._failures: dict[KeyT, int] = {}

    def fail(self, key: KeyT) -> float:
        """Count one more failure of ``key``; returns the seconds to wait before it is tried again."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        return min(self._base * 2.0 ** min(failures, _MAX_EXPONENT), self._max)

    def forget(self, key: KeyT) -> None:
        """Start anew for ``key``; nothing happens when it never failed."""
        self._failures.pop(key, None)

    def failures(self, key: KeyT) -> int:
        """How often ``key`` failed since it was last forgotten."""
        return self._failures.get(key, 0)


class TokenBucket:
    """A rate with a burst, handing out reservations: a caller is told how long to wait, never refused. Not thread-safe.

    Args:
        clock: Monotonic seconds.
        per_second: Tokens that flow in per second.
        burst: Tokens that the bucket holds, and holds at the start.
    """

    def __init__(
        self, clock: Callable[[], float], per_second: float = RETRIES_PER_SECOND, burst: int = RETRY_BURST
    ) -> None:
        if per_second <= 0 or burst < 1:
            raise ValueError(f"per_second={per_second} must be above 0 and burst={burst} at least 1")
        self._clock = clock
        self._rate = per_second
        self._burst = float(burst)
        self._tokens = self._burst
        self._filled_at = clock()

    def reserve(self) -> float:
        """Take one token, on credit if need be; returns the seconds until it would have been there."""
        now = self._clock()
        # A clock that stepped back brings no tokens and takes none.
        elapsed = max(0.0, now - self._filled_at)
        self._filled_at = now
        self._tokens = min(self._burst, self._tokens + elapsed * self._rate) - 1.0
        return max(0.0, -self._tokens / self._rate)
