"""What the operator was started with, as far as a decision depends on it. Frozen at start (rule R22)."""

from __future__ import annotations

from dataclasses import dataclass

from instructpt.api.version import VERSION
from instructpt.cluster.context import DEFAULT_IMAGES, Images


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of the operator that decide how children look and when they are retried.

    Attributes:
        launcher: Name of the launcher for training.
        code_version: Version stamped into RunSpecs.
        settings: Hash of all settings; goes into every status.
        progress_seconds: Time between two looks at running workers.
        start_seconds: Time between two looks at pods that do not run yet.
        blocked_seconds: Time between two visits to an object that waits for somebody to act.
        retry_seconds: Wait after the first failure of a stage; it doubles with every further one.
        retry_seconds_max: The longest wait.
        interrupted_seconds_max: The longest wait after interruptions that are not counted.
    """

    images: Images = DEFAULT_IMAGES
    launcher: str = "pytorchjob"
    code_version: str = VERSION
    settings: str = ""
    progress_seconds: float = 10.0
    start_seconds: float = 2.5
    blocked_seconds: float = 30.0
    retry_seconds: float = 5.0
    retry_seconds_max: float = 300.0
    interrupted_seconds_max: float = 60.0

    @property
    def stale_seconds(self) -> float:
        """Age from which what workers told says nothing of now: three looks without an answer."""
        return 3 * self.progress_seconds

    def retry_wait(self, failures: int, interruptions: int) -> float:
        """Seconds to wait before the next attempt.

        Args:
            failures: Attempts that were counted; each doubles the wait.
            interruptions: Attempts in a row that were interrupted. The first that was nobody's fault waits for nothing,
                but one after the other must not become a storm.
        """
        if interruptions > 1:
            return self._doubled(interruptions - 2, self.interrupted_seconds_max)
        if interruptions or not failures:
            return 0.0
        return self._doubled(failures - 1, self.retry_seconds_max)

    def _doubled(self, times: int, longest: float) -> float:
        return float(min(self.retry_seconds * 2 ** min(times, 16), longest))
