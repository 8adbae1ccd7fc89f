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
        retry_seconds: Wait after the first failure of a stage; it doubles with every further one.
        retry_seconds_max: The longest wait.
        interrupted_seconds_max: The longest wait after interruptions that are not counted.
    """

    images: Images = DEFAULT_IMAGES
    launcher: str = "pytorchjob"
    code_version: str = VERSION
    settings: str = ""
    progress_seconds: float = 10.0
    start_seconds: float = 3.0
    retry_seconds: float = 5.0
    retry_seconds_max: float = 300.0
    interrupted_seconds_max: float = 60.0

    def retry_wait(self, failures: int, attempts: int) -> float:
        """Seconds to wait before the next attempt.

        Args:
            failures: Attempts that were counted; each doubles the wait.
            attempts: All attempts. The first interruption that was nobody's fault waits for nothing, but one after the
                other must not become a storm.
        """
        if failures:
            return float(min(self.retry_seconds * 2 ** min(failures - 1, 16), self.retry_seconds_max))
        if attempts < 2:
            return 0.0
        return float(min(self.retry_seconds * 2 ** min(attempts - 2, 16), self.interrupted_seconds_max))
