"""A task as a batch/v1 Job: an Indexed Job of workers, or the one pod that closes a stage."""

from __future__ import annotations

from typing import Any

from instructpt.cluster.context import RenderContext
from instructpt.cluster.meta import is_finalize, task_metadata
from instructpt.cluster.pods import pod_template
from instructpt.plan.model import Stage, Task

CONTAINER = "worker"

EXIT_CANNOT_WORK = 42
EXIT_CONFIG = 43
EXIT_STOPPED = 75
"""Exit codes of ``instructpt worker``: this worker cannot work; nobody can; told to stop, committed work is kept."""

_DISRUPTED = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
"""Not the workload's doing: a drain or an eviction, whatever the worker then said."""

RETRIES_PER_INDEX = 6
"""The most an index is restarted in one attempt, whatever ``backoffLimit`` says: the waits between double each time."""

_FINALIZE_RETRIES = 2


def job(stage: Stage, task: Task, attempt: int, ctx: RenderContext) -> dict[str, Any]:
    """The Job of one attempt.

    It has no deadline and no time to live: the operator holds the first, and the owner's deletion takes the Job along.
    """
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": task_metadata(stage, task, attempt, ctx),
        "spec": {
            **(_finalize() if is_finalize(task) else _workers(task, ctx)),
            "template": pod_template(stage, task, attempt, ctx, container=CONTAINER),
        },
    }


def _workers(task: Task, ctx: RenderContext) -> dict[str, Any]:
    """An index is the identity of a worker, not a slice of the work.

    ``maxFailedIndexes`` is left out: the Job then runs until every index has ended, so the workers that are left do
    the work of one that failed, and a single index that failed still makes the Job Failed. A number would also stand
    in the way of ``kubectl scale``, since it cannot change and must not be above ``completions``. ``backoffLimit`` is
    left to its default beside ``backoffLimitPerIndex``, which is no limit.

    A worker that was told to stop fails its index rather than being replaced. Whoever stops it is deleting it, the Job
    or the namespace; a drain or a preemption is told by DisruptionTarget and replaced. Kubernetes keeps a failed pod's
    finalizer until its replacement exists, and a namespace that is being deleted gets none: it would never end.
    """
    return {
        "completionMode": "Indexed",
        "completions": task.replicas,
        "parallelism": task.replicas,
        "backoffLimitPerIndex": min(ctx.policy.backoff_limit, RETRIES_PER_INDEX),
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {
            "rules": [
                _DISRUPTED,
                _on_exit("FailIndex", EXIT_CANNOT_WORK, EXIT_STOPPED),
                _on_exit("FailJob", EXIT_CONFIG),
            ]
        },
    }


def _finalize() -> dict[str, Any]:
    return {
        "completions": 1,
        "parallelism": 1,
        "backoffLimit": _FINALIZE_RETRIES,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {
            "rules": [
                _DISRUPTED,
                _on_exit("Ignore", EXIT_STOPPED),
                _on_exit("FailJob", EXIT_CANNOT_WORK, EXIT_CONFIG),
            ]
        },
    }


def _on_exit(action: str, *codes: int) -> dict[str, Any]:
    exit_codes = {"containerName": CONTAINER, "operator": "In", "values": list(codes)}
    return {"action": action, "onExitCodes": exit_codes}
