"""Parts of specs that several kinds share: run policy, pod template, progress and status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from instructpt.api.base import ApiModel, Condition, ObjectRef


class PodTemplate(ApiModel):
    """The part of a pod that may be set by the user. Nothing here can leave the pod's sandbox."""

    labels: Annotated[Mapping[str, str] | None, Field(default=None, description="Labels added to the pods.")] = None
    annotations: Annotated[
        Mapping[str, str] | None, Field(default=None, description="Annotations added to the pods.")
    ] = None
    image: Annotated[str | None, Field(default=None, max_length=512, description="Image in place of the chart's.")] = (
        None
    )
    image_pull_policy: Annotated[
        Literal["Always", "IfNotPresent", "Never"] | None, Field(default=None, description="When to pull the image.")
    ] = None
    node_selector: Annotated[
        Mapping[str, str] | None, Field(default=None, description="Labels the node must have.")
    ] = None
    service_account_name: Annotated[
        str | None, Field(default=None, max_length=253, description="Service account, for workload identity.")
    ] = None
    priority_class_name: Annotated[str | None, Field(default=None, max_length=253, description="Priority class.")] = (
        None
    )
    scheduler_name: Annotated[str | None, Field(default=None, max_length=253, description="Scheduler.")] = None
    runtime_class_name: Annotated[str | None, Field(default=None, max_length=253, description="Runtime class.")] = None
    termination_grace_period_seconds: Annotated[
        int | None, Field(default=None, ge=0, description="In place of the planned grace period.")
    ] = None


class Resources(ApiModel):
    """What one worker asks for."""

    gpus: Annotated[int, Field(default=0, ge=0, le=64, description="GPUs a worker; tensor parallel over them.")] = 0
    cpus: Annotated[
        float | None, Field(default=None, gt=0, description="CPU cores a worker. Acted on by a cluster alone.")
    ] = None
    memory: Annotated[
        str | None,
        Field(
            default=None,
            pattern=r"^\d+(\.\d+)?(Ki|Mi|Gi|Ti)?$",
            description="Memory a worker, such as 8Gi. Acted on by a cluster alone.",
        ),
    ] = None


class RunPolicy(ApiModel):
    """Fields that every kind has: when to run, how long, how often to retry, what to keep."""

    suspend: Annotated[bool, Field(default=False, description="Stop the workers and keep committed work.")] = False
    active_deadline_seconds: Annotated[
        int | None,
        Field(default=None, ge=1, description="Longest time from start to end; afterwards the object is Failed."),
    ] = None
    ttl_seconds_after_finished: Annotated[
        int | None,
        Field(
            default=None,
            ge=0,
            description="Remove the finished object after this time; outputs stay. Acted on by a cluster alone.",
        ),
    ] = None
    backoff_limit: Annotated[
        int, Field(default=3, ge=0, le=100, description="Attempts after a failure that the workload itself caused.")
    ] = 3
    managed_by: Annotated[
        str | None,
        Field(
            default=None,
            max_length=63,
            description="Another controller that takes this object (MultiKueue). Acted on by a cluster alone.",
        ),
    ] = None
    queue_name: Annotated[
        str | None,
        Field(
            default=None, max_length=63, description="Kueue local queue of the workers. Acted on by a cluster alone."
        ),
    ] = None
    cleanup_policy: Annotated[
        Literal["Retain", "Delete"],
        Field(
            default="Retain",
            description="What happens to outputs when the object is deleted. Acted on by a cluster alone.",
        ),
    ] = "Retain"
    pod_template: Annotated[
        PodTemplate | None,
        Field(default=None, description="Settings of the workers' pods. Acted on by a cluster alone."),
    ] = None


class OutputStatus(ApiModel):
    """The produced set: where its manifest is and what it hashes to."""

    uri: Annotated[str, Field(description="Prefix that holds manifest.json.")]
    digest: Annotated[str, Field(description="sha256 of the manifest.")]


class ShardCounts(ApiModel):
    """Micro-shards by state."""

    total: Annotated[int, Field(default=0, ge=0, description="All micro-shards.")] = 0
    succeeded: Annotated[int, Field(default=0, ge=0, description="Committed.")] = 0
    failed: Annotated[int, Field(default=0, ge=0, description="Given up.")] = 0
    active: Annotated[int, Field(default=0, ge=0, description="Leased by a worker.")] = 0


class ProgressStatus(ApiModel):
    """How far it is."""

    done: Annotated[int, Field(default=0, ge=0, description="Units done: micro-shards or steps.")] = 0
    total: Annotated[int, Field(default=0, ge=0, description="Units in all.")] = 0
    unit: Annotated[str, Field(default="", description="What is counted: shards, steps, tasks.")] = ""
    eta_seconds: Annotated[int | None, Field(default=None, ge=0, description="Estimated time left, in seconds.")] = None


class CommonStatus(ApiModel):
    """Status fields of every kind."""

    observed_generation: Annotated[
        int | None, Field(default=None, description="Generation the status was judged on.")
    ] = None
    phase: Annotated[str, Field(default="Pending", description="For display only; derived from the conditions.")] = (
        "Pending"
    )
    conditions: Annotated[
        tuple[Condition, ...],
        Field(
            default=(),
            max_length=16,
            description="Complete, Failed, Running, Suspended, Blocked, ...",
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        ),
    ] = ()
    start_time: Annotated[
        str | None,
        Field(
            default=None, description="When the first worker was started.", json_schema_extra={"format": "date-time"}
        ),
    ] = None
    completion_time: Annotated[
        str | None, Field(default=None, description="When it ended.", json_schema_extra={"format": "date-time"})
    ] = None
    attempt: Annotated[int, Field(default=0, ge=0, description="Attempts started so far.")] = 0
    restarts: Annotated[int, Field(default=0, ge=0, description="Restarts of workers.")] = 0
    shards: Annotated[ShardCounts | None, Field(default=None, description="Micro-shards by state.")] = None
    progress: Annotated[ProgressStatus | None, Field(default=None, description="How far it is.")] = None
    counts: Annotated[
        Mapping[str, int], Field(default_factory=dict, description="Documents by verdict, pairs, tokens, bytes.")
    ]
    scores: Annotated[Mapping[str, float], Field(default_factory=dict, description="Headline figures: loss, scores.")]
    cost: Annotated[str | None, Field(default=None, description="Cost so far.")] = None
    child_refs: Annotated[
        tuple[ObjectRef, ...],
        Field(
            default=(), max_length=64, description="Children.", json_schema_extra={"x-kubernetes-list-type": "atomic"}
        ),
    ] = ()
    output: Annotated[OutputStatus | None, Field(default=None, description="The produced set.")] = None
