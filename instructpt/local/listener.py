"""What an executor tells while it runs."""

from __future__ import annotations

from typing import Any, Protocol

from instructpt.api.runspec import StageResult
from instructpt.plan.model import Plan, Stage


class Listener(Protocol):
    """Hears of everything; the default implementations of a silent run do nothing."""

    def planned(self, plan: Plan) -> None:
        """A plan was made, at the start and after each stage."""

    def inputs_changed(self, stage: Stage) -> None:
        """A finished inspection is made again, because its corpus changed."""

    def stage_started(self, stage: Stage, attempt: int) -> None:
        """Workers of a stage were started."""

    def progressed(self, stage: Stage, figures: dict[str, Any]) -> None:
        """Merged ``/progress`` of a stage's workers."""

    def stage_retried(self, stage: Stage, message: str, failures: int) -> None:
        """An attempt failed and another follows."""

    def stage_done(self, stage: Stage, result: StageResult, seconds: float) -> None:
        """A stage left its result."""

    def stopping(self, signals: int) -> None:
        """A signal asked to stop; a second one means at once."""


class Silent:
    """Hears and says nothing."""

    def planned(self, plan: Plan) -> None:
        """Nothing."""

    def inputs_changed(self, stage: Stage) -> None:
        """Nothing."""

    def stage_started(self, stage: Stage, attempt: int) -> None:
        """Nothing."""

    def progressed(self, stage: Stage, figures: dict[str, Any]) -> None:
        """Nothing."""

    def stage_retried(self, stage: Stage, message: str, failures: int) -> None:
        """Nothing."""

    def stage_done(self, stage: Stage, result: StageResult, seconds: float) -> None:
        """Nothing."""

    def stopping(self, signals: int) -> None:
        """Nothing."""
