"""The launcher interface, and the state that Jobs and launcher objects share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from instructpt.cluster.context import RenderContext
from instructpt.plan.model import Stage, Task

WorkPhase = Literal["Pending", "Running", "Suspended", "Succeeded", "Failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkState:
    """What a Job or a launcher object says of itself.

    Attributes:
        phase: Pending until a pod runs; Succeeded and Failed are final.
        reason: As Kubernetes says it, of a failure: ``PodFailurePolicy``, ``FailedIndexes``, ``DeadlineExceeded`` ...
        message: As Kubernetes says it.
        active: Pods that exist and have not ended.
        ready: Pods that are ready.
        succeeded: Pods (indexes) that ended well.
        failed: Pods (indexes) that did not.
        wanted: Pods that must be there together; 0 where their number may vary.
    """

    phase: WorkPhase
    reason: str = ""
    message: str = ""
    active: int = 0
    ready: int = 0
    succeeded: int = 0
    failed: int = 0
    wanted: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a launcher can do."""

    elastic: bool = False
    gang: bool = False
    managed_by: bool = False


class Launcher(Protocol):
    """Builds and judges the object that runs one attempt of a training. Pure: it calls no API server."""

    name: str
    api_version: str
    kind: str
    plural: str
    pod_name_label: str
    """Label on its pods whose value is the object's name."""

    def build(self, stage: Stage, task: Task, attempt: int, ctx: RenderContext) -> dict[str, Any]:
        """The object of one attempt."""
        ...

    def observe(self, obj: Mapping[str, Any]) -> WorkState:
        """What the object says of itself."""
        ...

    def suspend_patch(self, suspend: bool) -> dict[str, Any]:
        """A merge patch that stops or resumes it."""
        ...

    def capabilities(self) -> Capabilities:
        """What it can do."""
        ...
