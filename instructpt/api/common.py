"""Parts of specs that several kinds share: run policy, pod template, progress and status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from instructpt.api.base import Access, ApiModel, Condition, ObjectRef
from instructpt.api.pods import PodTemplate as PodTemplate


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
            max_length=32,
            pattern=r"^\d+(\.\d+)?(Ki|Mi|Gi|Ti)?$",
            description="Memory a worker, such as 8Gi. Acted on by a cluster alone.",
        ),
    ] = None


class CompletionPolicy(ApiModel):
    """When a synthesis counts as done although documents failed."""

    min_succeeded_percent: Annotated[
        int,
        Field(
            default=95,
            ge=0,
            le=100,
            description="Share of the documents that must succeed, in percent; below it the object is Failed, at or "
            "above it Complete (reason CompletedWithFailures).",
        ),
    ] = 95


def _retained(value: object) -> object:
    """Say more than that a word is not known: other projects have it."""
    if value == "Delete":
        raise ValueError("is not available yet; use Retain and remove the outputs")
    return value


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
        Literal["Retain"],
        BeforeValidator(_retained),
        Field(
            default="Retain",
            description="What happens to outputs when the object is deleted: they stay. Deleting them is not offered "
            "yet; remove what lies below storage.uri by hand, such as with aws s3 rm --recursive.",
        ),
    ] = "Retain"
    pod_template: Annotated[
        PodTemplate | None,
        Field(default=None, description="Settings of the workers' pods. Acted on by a cluster alone."),
    ] = None


class StageResult(ApiModel):
    """What ``instructpt worker finalize`` leaves in its termination message: at most 4,096 bytes, no lists."""

    uri: Annotated[str, Field(max_length=2048, description="Prefix that holds manifest.json.")]
    digest: Annotated[str, Field(max_length=128, description="sha256 of the manifest.")]
    counts: Annotated[
        Mapping[str, int], Field(default_factory=dict, description="Documents by verdict, pairs, tokens, steps.")
    ]
    scores: Annotated[Mapping[str, float], Field(default_factory=dict, description="Headline figures.")]
    missing: Annotated[int, Field(default=0, ge=0, description="Micro-shards without a commit.")] = 0


class StageStatus(ApiModel):
    """One stage of an object, as the operator remembers it: what a change of leader must not lose."""

    step: Annotated[str, Field(max_length=253, description="Name of the step.")]
    key: Annotated[
        str, Field(max_length=4096, description="Where it writes and what it computes; another key starts it anew.")
    ]
    attempt: Annotated[int, Field(default=0, ge=0, description="Attempts so far.")] = 0
    failed_attempt: Annotated[int, Field(default=0, ge=0, description="Last attempt that was judged a failure.")] = 0
    failures: Annotated[int, Field(default=0, ge=0, description="Attempts that counted against backoffLimit.")] = 0
    interruptions: Annotated[
        int, Field(default=0, ge=0, description="Attempts in a row that were interrupted and did not count.")
    ] = 0
    done: Annotated[
        int | None, Field(default=None, ge=0, description="Of a training: the step that its failed attempts reached.")
    ] = None
    last_failure: Annotated[
        str | None, Field(default=None, max_length=2048, description="Why the last attempt failed.")
    ] = None
    last_failure_time: Annotated[
        str | None,
        Field(default=None, description="When the last attempt failed.", json_schema_extra={"format": "date-time"}),
    ] = None
    result: Annotated[StageResult | None, Field(default=None, description="What it left, once it is done.")] = None


class InputStatus(Access):
    """An input that was named by a ref, frozen when the object it names was complete."""

    kind: Annotated[str, Field(max_length=63, description="Kind of the object.")]
    name: Annotated[str, Field(max_length=63, description="Name of the object.")]
    uri: Annotated[str, Field(max_length=2048, description="Prefix of its output.")]
    digest: Annotated[str, Field(max_length=128, description="sha256 of its manifest.")]


class OutputStatus(ApiModel):
    """The produced set: where its manifest is and what it hashes to."""

    uri: Annotated[str, Field(max_length=2048, description="Prefix that holds manifest.json.")]
    digest: Annotated[str, Field(max_length=128, description="sha256 of the manifest.")]


class ShardCounts(ApiModel):
    """Micro-shards by state."""

    total: Annotated[int, Field(default=0, ge=0, description="All micro-shards.")] = 0
    succeeded: Annotated[int, Field(default=0, ge=0, description="Committed.")] = 0


class ProgressStatus(ApiModel):
    """How far it is."""

    done: Annotated[int, Field(default=0, ge=0, description="Units done: micro-shards or steps.")] = 0
    total: Annotated[int, Field(default=0, ge=0, description="Units in all.")] = 0
    unit: Annotated[str, Field(default="", max_length=63, description="What is counted: shards, steps, tasks.")] = ""
    eta_seconds: Annotated[int | None, Field(default=None, ge=0, description="Estimated time left, in seconds.")] = None
    tokens_per_second: Annotated[
        float | None, Field(default=None, ge=0, description="Tokens a second, of all workers.")
    ] = None
    mfu: Annotated[
        float | None, Field(default=None, ge=0, description="Of training: model FLOPs utilisation, 0 to 1.")
    ] = None
    last_updated_time: Annotated[
        str | None,
        Field(default=None, description="When a worker last said so.", json_schema_extra={"format": "date-time"}),
    ] = None
    stale: Annotated[
        bool | None,
        Field(default=None, description="True where workers have been silent for so long that no rate holds."),
    ] = None


DisplayText = Annotated[str, Field(max_length=256)]


class DisplayStatus(ApiModel):
    """Columns of ``kubectl get``: text made from the fields beside it, for people alone."""

    progress: Annotated[DisplayText | None, Field(default=None, description="Such as 147/512 (28%).")] = None
    synthesis: Annotated[
        DisplayText | None, Field(default=None, description="Of a pipeline: progress of its synthesis.")
    ] = None
    training: Annotated[
        DisplayText | None, Field(default=None, description="Of a pipeline: steps of its trainings.")
    ] = None
    documents: Annotated[DisplayText | None, Field(default=None, description="Such as 15.2M.")] = None
    tokens: Annotated[DisplayText | None, Field(default=None, description="Such as 3.1B.")] = None
    shards: Annotated[DisplayText | None, Field(default=None, description="Micro-shards in all.")] = None
    pairs: Annotated[DisplayText | None, Field(default=None, description="Such as 4.1M.")] = None
    step: Annotated[DisplayText | None, Field(default=None, description="Such as 12000/50000.")] = None
    loss: Annotated[DisplayText | None, Field(default=None, description="Such as 2.314.")] = None
    score: Annotated[DisplayText | None, Field(default=None, description="Of the model that is judged.")] = None
    delta: Annotated[
        DisplayText | None, Field(default=None, description="Its gain over the baseline; above 0 is better.")
    ] = None
    throughput: Annotated[DisplayText | None, Field(default=None, description="Tokens a second, such as 12.3k.")] = None
    mfu: Annotated[DisplayText | None, Field(default=None, description="Such as 41.2%.")] = None
    eta: Annotated[DisplayText | None, Field(default=None, description="Time left, such as 5h10m.")] = None
    model: Annotated[DisplayText | None, Field(default=None, description="Model of the spec.")] = None
    arms: Annotated[DisplayText | None, Field(default=None, description="Names of the arms.")] = None
    tasks: Annotated[DisplayText | None, Field(default=None, description="Names of the tasks.")] = None


class CommonStatus(ApiModel):
    """Status fields of every kind."""

    observed_generation: Annotated[
        int | None, Field(default=None, description="Generation the status was judged on.")
    ] = None
    phase: Annotated[
        str, Field(default="Pending", max_length=63, description="For display only; derived from the conditions.")
    ] = "Pending"
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
    workers: Annotated[int, Field(default=0, ge=0, description="Pods that work on it now.")] = 0
    restarts: Annotated[
        int, Field(default=0, ge=0, description="Attempts after the first of each stage, whatever their cause.")
    ] = 0
    shards: Annotated[ShardCounts | None, Field(default=None, description="Micro-shards by state.")] = None
    progress: Annotated[ProgressStatus | None, Field(default=None, description="How far it is.")] = None
    counts: Annotated[
        Mapping[str, int],
        Field(
            default_factory=dict,
            description="Documents by verdict, pairs, tokens, bytes; while it runs at least so many, at the end exact.",
        ),
    ]
    scores: Annotated[Mapping[str, float], Field(default_factory=dict, description="Headline figures: loss, scores.")]
    cost: Annotated[str | None, Field(default=None, max_length=63, description="Cost so far.")] = None
    display: Annotated[DisplayStatus | None, Field(default=None, description="Columns of kubectl get.")] = None
    child_refs: Annotated[
        tuple[ObjectRef, ...],
        Field(
            default=(),
            max_length=80,
            description="Objects that this one created, in the order in which they run.",
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
        ),
    ] = ()
    output: Annotated[OutputStatus | None, Field(default=None, description="The produced set.")] = None
    code_version: Annotated[
        str | None,
        Field(
            default=None,
            max_length=63,
            description="Version that its stages are of; fixed when it started, so that "
            "an upgrade of the operator repeats nothing.",
        ),
    ] = None
    settings: Annotated[
        str | None,
        Field(default=None, max_length=16, description="Hash of the operator's settings that this was judged with."),
    ] = None
    stages: Annotated[
        tuple[StageStatus, ...],
        Field(
            default=(),
            max_length=512,
            description="Stages that were started, with what they left.",
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["step"]},
        ),
    ] = ()
    inputs: Annotated[
        tuple[InputStatus, ...],
        Field(
            default=(),
            max_length=256,
            description="Inputs named by a ref, as they were when this object started.",
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
        ),
    ] = ()
