"""What a reconciler is given beside its object: the owned state as data. It has no clock, client or environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from instructpt_operator.actions import Object

WORKER_CONTAINERS = ("worker", "pytorch")
"""Ours, of a Job's pod and of a launcher's; every other container was added by somebody else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodProblem:
    """Why a pod of a child does not run.

    Attributes:
        reason: As Kubernetes says it: ``ImagePullBackOff``, ``CreateContainerConfigError``, ``Unschedulable`` ...
        message: As Kubernetes says it.
        container: The one that does not start; empty where it is the pod as a whole.
    """

    pod: str
    reason: str
    message: str
    container: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodEnd:
    """How a pod's worker ended.

    Attributes:
        exit_code: Of the worker's container; ``None`` where the pod never ran (evicted before start).
        message: Its termination message as JSON: a StageResult, or ``{"error": {...}}``; ``None`` if unreadable.
        disrupted: Whether the pod has the condition DisruptionTarget: preempted, evicted, drained, node lost.
        reason: As Kubernetes says it: ``Completed``, ``Error``, ``OOMKilled``, ``Evicted`` ...
        told_to_leave: Whether somebody had the pod deleted before its worker ended.
        gave_up: The init container, none of ours, that ended with an error, so that the worker never ran.
    """

    pod: str
    exit_code: int | None
    message: Mapping[str, Any] | None = None
    disrupted: bool = False
    reason: str = ""
    told_to_leave: bool = False
    gave_up: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodFacts:
    """What the last look at a child's pods showed; absent from ``Observed.pods`` if nobody looked.

    Attributes:
        listed: Pods that exist, whatever their state; ``None`` where that was not counted.
        running: Pods whose worker runs.
        problems: Why pods do not start, those of the worker's own container first. Of a child that has ended: what was
            in the way when it was looked at last.
        started: Whether any worker was seen to run, or to have run.
        recreated: Pods that were created again after a peer of theirs ran already: the first one was taken away.
        replaced: Names whose pod was another one at an earlier look.
        leaving: Pods that are on their way out, each with its node.
        stranded: Whether a pod that has ended is being deleted and yet stays.
        figures: Merged ``/progress`` of the pods that answered, if any.
        figures_at: When they last did.
    """

    listed: int | None = None
    running: int = 0
    problems: tuple[PodProblem, ...] = ()
    started: bool = False
    ends: tuple[PodEnd, ...] = ()
    recreated: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    leaving: tuple[str, ...] = ()
    stranded: bool = False
    figures: Mapping[str, Any] | None = None
    figures_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """The owned state of one object at one moment.

    Attributes:
        children: Objects whose controller is the reconciled object's uid: ConfigMaps are not among them; Jobs,
            launcher objects and, of a pipeline, objects of our kinds are. By ``(kind, name)``.
        pods: What was seen of the pods of a child, by the child's name.
        refs: Objects of our kinds that the object refers to by name; ``None`` where there is none. By ``(kind, name)``.
        name_conflict: Name of a foreign object that holds the name of a child, as the executor found on its last try.
        refused: What the API server said when it refused to create a child for good, on the executor's last try.
        namespace_ends: Whether the namespace is being deleted.
        launcher_installed: Whether the API server knows the launcher's resource.
    """

    children: Mapping[tuple[str, str], Object] = field(default_factory=dict)
    pods: Mapping[str, PodFacts] = field(default_factory=dict)
    refs: Mapping[tuple[str, str], Object | None] = field(default_factory=dict)
    name_conflict: str | None = None
    refused: str | None = None
    namespace_ends: bool = False
    launcher_installed: bool = True
