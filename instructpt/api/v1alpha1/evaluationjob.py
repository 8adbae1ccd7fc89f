"""EvaluationJob: checkpoints x tasks -> scores and a gate."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from instructpt.api.base import (
    STORAGE_LIMIT,
    ApiModel,
    Input,
    PrinterColumn,
    Resource,
    Rule,
    Seed,
    StorageSpec,
    must_name,
    storage_fits,
)
from instructpt.api.common import CommonStatus, Resources, RunPolicy
from instructpt.api.transitions import transition_rules
from instructpt.api.v1alpha1.synthesisjob import SplitName

MAX_MODELS = 64
DEFAULT_TASKS = ("bits-per-byte", "answer-bits-per-byte", "qa-exact-match")


# The server lists the names; a plan refuses others in words that say more (instructpt.api.checks).
TaskName = Annotated[str, Field(min_length=1, max_length=63, json_schema_extra={"enum": list(DEFAULT_TASKS)})]


class Gate(ApiModel):
    """When the answer to "did it help?" is yes."""

    metric: Annotated[str, Field(max_length=63, description="Metric that decides: one of the tasks.")]
    min_delta: Annotated[
        float,
        Field(
            default=0.0,
            alias="minDelta",
            description="Least gain over the baseline; its 95 % interval must exclude no gain.",
        ),
    ] = 0.0


class EvaluationSettings(ApiModel):
    """What is measured; shared by EvaluationJob and the pipeline."""

    tasks: Annotated[
        tuple[TaskName, ...],
        Field(
            default=DEFAULT_TASKS,
            min_length=1,
            max_length=64,
            description="bits-per-byte, answer-bits-per-byte, qa-exact-match.",
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
        ),
    ] = DEFAULT_TASKS
    max_documents: Annotated[int, Field(default=200, ge=1, description="Held-out documents at most.")] = 200
    max_questions: Annotated[
        int, Field(default=200, ge=1, description="Questions that are asked of each model at most.")
    ] = 200
    shots: Annotated[int, Field(default=1, ge=0, le=16, description="Solved examples before each question.")] = 1
    max_answer_tokens: Annotated[int, Field(default=16, ge=1, le=1024, description="Longest generated answer.")] = 16
    gate: Annotated[Gate | None, Field(default=None, description="When the answer is yes.")] = None
    resources: Annotated[Resources, Field(default_factory=Resources, description="What the worker asks for.")]
    seed: Annotated[Seed, Field(default=7, description="Seed of the choice of documents and questions.")] = 7
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule("tasks must differ", "self.tasks.all(a, self.tasks.exists_one(b, b == a))"),
        Rule(
            "gate.metric must be one of the tasks that are measured; add it to tasks",
            "!has(self.gate) || self.gate.metric in self.tasks",
        ),
    )


class Candidate(Input):
    """One model to measure."""

    name: Annotated[str, Field(max_length=63, description="Name in the table, such as the arm.")]
    seed: Annotated[Seed | None, Field(default=None, description="Seed it was trained with.")] = None
    rules: ClassVar[tuple[Rule, ...]] = (must_name("ref", "TrainingJob"),)


class EvaluationJobSpec(EvaluationSettings, RunPolicy):
    """What an EvaluationJob declares."""

    storage: Annotated[StorageSpec, Field(description="Where the scores go.")]
    models: Annotated[
        tuple[Candidate, ...],
        Field(
            min_length=1,
            max_length=MAX_MODELS,
            description="Models that are compared on the same documents and questions.",
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
        ),
    ]
    baseline: Annotated[
        str | None, Field(default=None, max_length=63, description="Name of the model that gains are counted from.")
    ] = None
    corpus: Annotated[Input, Field(description="Corpus whose documents are held out.")]
    split: Annotated[SplitName | None, Field(default="heldOut", description="Part of the corpus; empty takes all.")] = (
        "heldOut"
    )
    rules: ClassVar[tuple[Rule, ...]] = (
        storage_fits("storage", STORAGE_LIMIT),
        must_name("corpus.ref", "Corpus"),
        Rule(
            "gate needs baseline: name the model that gains are counted from", "!has(self.gate) || has(self.baseline)"
        ),
        Rule(
            "baseline must be the name of one of the models",
            "!has(self.baseline) || self.models.exists(m, m.name == self.baseline)",
            lambda s: s.baseline is None or any(m.name == s.baseline for m in s.models),
        ),
    )


class EvaluationJobStatus(CommonStatus):
    """What is known of an EvaluationJob."""

    gate: Annotated[
        Literal["Pending", "Passed", "Failed", "None"], Field(default="Pending", description="The gate's verdict.")
    ] = "Pending"


class EvaluationJob(Resource):
    """Measures models on held-out documents and says whether one beats the other."""

    plural: ClassVar[str] = "evaluationjobs"
    short_name: ClassVar[str] = "evl"
    columns: ClassVar[tuple[PrinterColumn, ...]] = (
        PrinterColumn("Phase", ".status.phase"),
        PrinterColumn("Progress", ".status.display.progress"),
        PrinterColumn("Score", ".status.display.score"),
        PrinterColumn("Delta", ".status.display.delta"),
        PrinterColumn("Gate", ".status.gate"),
        PrinterColumn("Age", ".metadata.creationTimestamp", "date"),
        PrinterColumn("Tasks", ".status.display.tasks", priority=1),
        PrinterColumn("Baseline", ".spec.baseline", priority=1),
        PrinterColumn("Output", ".status.output.uri", priority=1),
    )
    rules: ClassVar[tuple[Rule, ...]] = transition_rules(EvaluationJobSpec)
    kind: Annotated[Literal["EvaluationJob"], Field(description="Kind.")]
    spec: Annotated[EvaluationJobSpec, Field(description="What is wanted.")]
    status: Annotated[EvaluationJobStatus | None, Field(default=None, description="What is known.")] = None
