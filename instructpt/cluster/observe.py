"""What a Job or a launcher's object says of itself, in one shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from instructpt.cluster.launchers import LAUNCHERS
from instructpt.cluster.launchers.base import WorkPhase, WorkState


def work_state(obj: Mapping[str, Any]) -> WorkState:
    """The state of one attempt.

    Raises:
        ValueError: The object is neither a Job nor of a known launcher.
    """
    api_version, kind = obj["apiVersion"], obj["kind"]
    if (api_version, kind) == ("batch/v1", "Job"):
        return _job(obj)
    for launcher in LAUNCHERS.values():
        if (launcher.api_version, launcher.kind) == (api_version, kind):
            return launcher.observe(obj)
    raise ValueError(f"{api_version} {kind} runs no task")


def _job(obj: Mapping[str, Any]) -> WorkState:
    """Judged by the conditions that hold.

    FailureTarget and SuccessCriteriaMet say how it will end while pods are still leaving; until then it is Running,
    since those pods may still commit. Their reason is shown all the same.
    """
    spec, status = obj["spec"], obj.get("status") or {}
    true = {c["type"]: c for c in status.get("conditions") or () if c.get("status") == "True"}
    failed = status.get("failed") or 0
    if "backoffLimitPerIndex" in spec:
        failed = count_indexes(status.get("failedIndexes") or "")
    active, ready, succeeded = (status.get(name) or 0 for name in ("active", "ready", "succeeded"))
    phase: WorkPhase = "Running" if ready or succeeded or failed or status.get("failed") else "Pending"
    if "FailureTarget" in true or "SuccessCriteriaMet" in true:
        phase = "Running"
    if spec.get("suspend") or "Suspended" in true:
        phase = "Suspended"
    if "Complete" in true:
        phase = "Succeeded"
    if "Failed" in true:
        phase = "Failed"
    said: Mapping[str, Any] = next(
        (true[type_] for type_ in ("Failed", "FailureTarget", "Suspended") if type_ in true), {}
    )
    return WorkState(
        phase=phase,
        reason=said.get("reason") or "",
        message=said.get("message") or "",
        active=active,
        ready=ready,
        succeeded=succeeded,
        failed=failed,
    )


def count_indexes(intervals: str) -> int:
    """How many indexes a Job's interval list names: ``1,3-5`` are four."""
    total = 0
    for part in filter(None, intervals.split(",")):
        first, _, last = part.partition("-")
        total += int(last or first) - int(first) + 1
    return total
