"""The clock of every arm of the training benchmark, peers included."""

from __future__ import annotations

import time

from train_fixture import Job


class Clock:
    """Told at the end of every step; begins after the warm-up and ends with the last measured step.

    Args:
        job: Says how many steps there are.
    """

    def __init__(self, job: Job) -> None:
        self._job, self._born, self._begun = job, time.perf_counter(), 0.0
        self.steps, self.seconds, self.start_seconds = 0, 0.0, 0.0

    def tick(self) -> bool:
        """A step ended; whether it was the last one."""
        now = time.perf_counter()
        self.steps += 1
        if self.steps == 1:
            self.start_seconds = now - self._born
        if self.steps == self._job.warm_up:
            self._begun = now
        if self.steps == self._job.total:
            self.seconds = now - self._begun
        return self.steps >= self._job.total
