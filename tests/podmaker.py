"""Pods as the API server shows them, for tests that judge them."""

from __future__ import annotations

from typing import Any

from figures import told

FIGURES = told(3, 9, "shards", per_second=0.5, counts={"pairs": 5}, rates={"tokens_per_second": 10.0})
OWNER = {"apiVersion": "batch/v1", "kind": "Job", "name": "s-synthesis-1", "uid": "u-1", "controller": True}


def pod(
    name: str = "p-0", phase: str = "Running", state: dict[str, Any] | None = None, **status: Any
) -> dict[str, Any]:
    state = {"running": {"startedAt": "2026-01-01T00:00:10Z"}} if state is None else state
    return {
        "metadata": {
            "name": name,
            "uid": f"uid-of-{name}",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "ownerReferences": [OWNER],
        },
        "status": {"phase": phase, "podIP": "10.0.0.1", "containerStatuses": [{"state": state}], **status},
    }


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return pod(phase="Pending", state={"waiting": {"reason": reason, "message": message}})


def ended(code: int, message: str = "", phase: str = "Failed", **status: Any) -> dict[str, Any]:
    return pod(phase=phase, state={"terminated": {"exitCode": code, "reason": "Error", "message": message}}, **status)
