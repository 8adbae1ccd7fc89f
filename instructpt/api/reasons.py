"""Reasons of conditions, in one table: shared by conditions, events and the docs."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """One word for why a condition holds; the value's comment is its line in the docs."""

    PENDING = "Pending"
    RUNNING = "StageRunning"
    COMPLETED = "AllStagesDone"
    STAGE_FAILED = "StageFailed"
    INVALID_SPEC = "InvalidSpec"
    SUSPENDED = "Suspended"
    STOPPED = "Stopped"


MEANING: dict[Reason, str] = {
    Reason.PENDING: "nothing has started yet",
    Reason.RUNNING: "workers of a stage are running",
    Reason.COMPLETED: "every stage has written its manifest",
    Reason.STAGE_FAILED: "a stage failed: more often than backoffLimit allows, or in a way that a retry cannot cure",
    Reason.INVALID_SPEC: "a worker found the spec or a credential wrong; retrying cannot help",
    Reason.SUSPENDED: "spec.suspend is true; committed work is kept",
    Reason.STOPPED: "the run was stopped or its process is gone; the same command goes on",
}
