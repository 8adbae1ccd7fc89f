"""Metadata of rendered objects: names, labels, owner."""

from __future__ import annotations

from typing import Any

from instructpt.cluster.context import Owner, RenderContext
from instructpt.plan.model import Stage, Task
from instructpt.plan.naming import (
    ANNOTATION_KEY,
    LABEL_ATTEMPT,
    LABEL_KIND,
    LABEL_NAME,
    LABEL_STEP,
    LABEL_TASK,
    MANAGED_BY,
    OPERATOR,
    QUEUE_LABEL,
    TASK_FINALIZE,
    TASK_WORK,
    as_label,
    shortened,
    task_name,
)

_LABEL_LIMIT = 63


def is_finalize(task: Task) -> bool:
    """Whether this is a finishing task."""
    return task.runspec.verb == "finalize"


def step_label(step: str) -> str:
    """The value of the step's label: a DNS label of at most 63 characters."""
    return shortened(as_label(step), limit=_LABEL_LIMIT)


def labels(owner: Owner, step: str) -> dict[str, str]:
    """What every object of a step carries."""
    return {
        MANAGED_BY: OPERATOR,
        LABEL_KIND: owner.kind,
        LABEL_NAME: owner.name,
        LABEL_STEP: step_label(step),
    }


def task_labels(task: Task, attempt: int, ctx: RenderContext) -> dict[str, str]:
    """What the pods of one attempt carry, and the object that makes them."""
    return {
        **labels(ctx.owner, task.runspec.step),
        LABEL_TASK: TASK_FINALIZE if is_finalize(task) else TASK_WORK,
        LABEL_ATTEMPT: str(attempt),
    }


def owned(owner: Owner, name: str, object_labels: dict[str, str]) -> dict[str, Any]:
    """Metadata of an object that goes with its owner."""
    meta: dict[str, Any] = {"name": name}
    if owner.namespace:
        meta["namespace"] = owner.namespace
    meta["labels"] = object_labels
    if owner.uid:
        meta["ownerReferences"] = [
            {
                "apiVersion": owner.api_version,
                "kind": owner.kind,
                "name": owner.name,
                "uid": owner.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ]
    return meta


def task_metadata(stage: Stage, task: Task, attempt: int, ctx: RenderContext) -> dict[str, Any]:
    """Metadata of the object that runs one attempt; only work is queued, a finishing task never waits for quota."""
    object_labels = task_labels(task, attempt, ctx)
    if ctx.policy.queue_name and not is_finalize(task):
        object_labels[QUEUE_LABEL] = ctx.policy.queue_name
    meta = owned(ctx.owner, task_name(ctx.owner.name, task.name, attempt), object_labels)
    if stage.key is not None:
        meta["annotations"] = {ANNOTATION_KEY: stage.key}
    return meta
