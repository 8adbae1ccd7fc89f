"""InstructionPretraining: the whole flow as one object, with arms at equal token budgets."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from instructpt.api.base import (
    PIPELINE_STORAGE_LIMIT,
    ApiModel,
    Count,
    Name,
    PrinterColumn,
    Resource,
    Rule,
    Seed,
    StorageSpec,
    Uri,
    storage_fits,
)
from instructpt.api.common import CommonStatus, CompletionPolicy, RunPolicy
from instructpt.api.transitions import transition_rules
from instructpt.api.v1alpha1.corpus import CorpusSource, Split
from instructpt.api.v1alpha1.corpusfilters import CorpusFilters
from instructpt.api.v1alpha1.evaluationjob import MAX_MODELS, EvaluationSettings
from instructpt.api.v1alpha1.mixturesource import MixtureSource
from instructpt.api.v1alpha1.synthesisjob import (
    DEFAULT_STRATEGY,
    OWN_STRATEGIES,
    StrategyName,
    SynthesisSettings,
    Synthesizer,
    has_rules,
)
from instructpt.api.v1alpha1.trainingjob import ModelInit, Optimizer, Schedule, TokenizerSpec, TrainingSettings


class PipelineCorpus(CorpusSource):
    """The corpus of a pipeline: inspected once, split by content."""

    split: Annotated[
        Split,
        Field(
            default_factory=lambda: Split(tune=0.0, train=0.95, held_out=0.05),
            description="Shares of the documents by content hash.",
        ),
    ]
    documents_per_shard: Annotated[
        int, Field(default=2000, ge=1, le=1_000_000, description="Target number of documents in a micro-shard.")
    ] = 2000
    filters: Annotated[CorpusFilters, Field(default_factory=CorpusFilters, description="Which documents are left out.")]


class TuneSpec(ApiModel):
    """Tune a synthesizer of one's own before the synthesis."""

    init: Annotated[ModelInit, Field(description="Where the synthesizer's weights start.")]
    tokenizer: Annotated[
        TokenizerSpec | None, Field(default=None, description="Tokenizer; empty takes that of init.")
    ] = None
    tasks: Annotated[
        Uri,
        Field(
            default="mined",
            description="mined takes the tune part and rules; else the URI of an augmented corpus.",
        ),
    ] = "mined"
    mixture: Annotated[
        tuple[MixtureSource, ...] | None,
        Field(
            default=None,
            min_length=1,
            max_length=16,
            description="Collections of tasks (format: tasks) and augmented corpora, in place of tasks.",
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
        ),
    ] = None
    tokens: Annotated[Count, Field(description="Non-padding tokens to tune on.")]
    sequence_length: Annotated[int, Field(default=1024, ge=64, le=1_048_576, description="Tokens in a packed row.")] = (
        1024
    )
    global_batch_rows: Annotated[int, Field(default=16, ge=1, description="Rows in a step, over all ranks.")] = 16
    micro_batch_rows: Annotated[int, Field(default=8, ge=1, description="Rows in one forward pass.")] = 8
    optimizer: Annotated[Optimizer, Field(default_factory=Optimizer, description="Optimizer and its rates.")]
    schedule: Annotated[Schedule, Field(default_factory=Schedule, description="Learning rate over steps.")]
    max_repeats: Annotated[int, Field(default=50, ge=1, le=1000, description="Passes over the tasks at most.")] = 50
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "tune takes tasks or mixture, not both; drop tasks where mixture names them",
            "!has(self.mixture) || !has(self.tasks) || self.tasks == 'mined'",
            lambda s: s.mixture is None or s.tasks == "mined",
        ),
        Rule(
            "entries of tune.mixture need uri or ref, and format augmented or tasks: a synthesizer learns answers",
            "!has(self.mixture) || self.mixture.all(m, !has(m.source) && "
            "(!has(m.format) || m.format in ['augmented', 'tasks']))",
            lambda s: all(m.source is None and m.format in (None, "augmented", "tasks") for m in s.mixture or ()),
        ),
    )

    @property
    def mined(self) -> bool:
        """Whether rules mine the tasks from the tune part of the corpus."""
        return self.mixture is None and self.tasks == "mined"


class PipelineSynthesizer(Synthesizer):
    """The synthesizer of a pipeline: a model that exists, or one tuned first."""

    tune: Annotated[TuneSpec | None, Field(default=None, description="Tune one first, on the tune part.")] = None


class PipelineSynthesis(SynthesisSettings):
    """Synthesis of a pipeline."""

    strategy: StrategyName = DEFAULT_STRATEGY
    synthesizer: Annotated[
        PipelineSynthesizer | None, Field(default=None, description="The model; none for strategies of rules.")
    ] = None
    shards: Annotated[
        int | None, Field(default=None, ge=1, le=1_000_000, description="Target number of micro-shards.")
    ] = None
    completion_policy: Annotated[
        CompletionPolicy,
        Field(default_factory=CompletionPolicy, description="When it is done although documents failed."),
    ]
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "strategy mined and engine.name mined go together; set both or neither",
            f"!(self.strategy in {list(OWN_STRATEGIES)}) || "
            "(self.strategy == 'mined') == (self.engine.name == 'mined')",
            lambda s: s.strategy not in OWN_STRATEGIES or (s.strategy == "mined") == (s.engine.name == "mined"),
        ),
        Rule(
            "synthesis.synthesizer needs exactly one of model, ref and tune, and none of them for strategies of rules",
            "self.strategy == 'mined' || (self.strategy != 'instruction-synthesizer' && self.engine.name == 'mined') "
            "? !has(self.synthesizer) : has(self.synthesizer) && "
            "(has(self.synthesizer.model) ? 1 : 0) + (has(self.synthesizer.ref) ? 1 : 0) + "
            "(has(self.synthesizer.tune) ? 1 : 0) == 1",
            lambda s: _one_synthesizer(s),
        ),
    )


def _one_synthesizer(spec: PipelineSynthesis) -> bool:
    s = spec.synthesizer
    given = 0 if s is None else sum(x is not None for x in (s.model, s.ref, s.tune))
    return given == (0 if has_rules(spec.strategy, spec.engine.name) else 1)


class ArmOverrides(ApiModel):
    """Fields of training that an arm may set differently. Tokens are not among them: budgets stay equal."""

    mixture: Annotated[
        tuple[MixtureSource, ...] | None,
        Field(
            default=None,
            min_length=1,
            max_length=64,
            description="Sources with weights, in place of those of training.",
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
        ),
    ] = None
    init: Annotated[ModelInit | None, Field(default=None, description="Where the weights start.")] = None
    optimizer: Annotated[Optimizer | None, Field(default=None, description="Optimizer and its rates.")] = None
    schedule: Annotated[Schedule | None, Field(default=None, description="Learning rate over steps.")] = None
    max_repeats: Annotated[
        int | None, Field(default=None, ge=1, le=1000, description="Passes over a source at most.")
    ] = None

    def overrides(self) -> dict[str, Any]:
        """The fields that are set, by attribute name."""
        return {name: getattr(self, name) for name in type(self).model_fields if getattr(self, name) is not None}


class Arm(ApiModel):
    """One way to train, compared with the others at an equal token budget."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "name must not be untrained, majority or chance: these are rows of the report",
            "!(self.name in ['untrained', 'majority', 'chance'])",
            lambda s: s.name not in ("untrained", "majority", "chance"),
        ),
    )

    name: Annotated[
        Name,
        Field(
            description="instruct trains on the augmented corpus, vanilla on the same documents raw; others as "
            "overridden."
        ),
    ]
    training: Annotated[
        ArmOverrides, Field(default_factory=ArmOverrides, description="What this arm has in place of training.")
    ]


class InstructionPretrainingSpec(RunPolicy):
    """What an InstructionPretraining declares."""

    storage: Annotated[StorageSpec, Field(description="Where everything goes.")]
    corpus: Annotated[PipelineCorpus, Field(description="The raw corpus: where it is, and how it is parted.")]
    synthesis: Annotated[PipelineSynthesis, Field(description="How it is augmented.")]
    training: Annotated[TrainingSettings, Field(description="How the models are trained.")]
    evaluation: Annotated[
        EvaluationSettings, Field(default_factory=EvaluationSettings, description="How they are compared.")
    ]
    arms: Annotated[
        tuple[Arm, ...],
        Field(
            default=(Arm(name="instruct"), Arm(name="vanilla")),
            min_length=1,
            max_length=16,
            description="Ways to train that are compared, one or more models each.",
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = (Arm(name="instruct"), Arm(name="vanilla"))
    seeds: Annotated[
        tuple[Seed, ...],
        Field(
            default=(1,),
            min_length=1,
            max_length=16,
            description="Each arm is trained once a seed.",
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
        ),
    ] = (1,)
    rules: ClassVar[tuple[Rule, ...]] = (
        storage_fits("storage", PIPELINE_STORAGE_LIMIT),
        Rule(
            f"arms x seeds must be at most {MAX_MODELS} trainings: one evaluation compares them all",
            f"self.arms.size() * self.seeds.size() <= {MAX_MODELS}",
            lambda s: len(s.arms) * len(s.seeds) <= MAX_MODELS,
        ),
        Rule(
            "corpus.split.tune must be above 0 to tune a synthesizer on mined tasks",
            "!has(self.synthesis.synthesizer) || !has(self.synthesis.synthesizer.tune) || "
            "self.synthesis.synthesizer.tune.tasks != 'mined' || has(self.synthesis.synthesizer.tune.mixture) || "
            "self.corpus.split.tune > 0.0",
            lambda s: not _tunes_on_mined(s) or s.corpus.split.tune > 0,
        ),
        Rule(
            "corpus.split.heldOut must be above 0: evaluation reads only documents that no arm has seen",
            "self.corpus.split.heldOut > 0.0",
            lambda s: s.corpus.split.held_out > 0,
        ),
        Rule(
            "training.tokens must be set: arms are compared at equal token budgets, not at epochs",
            "has(self.training.tokens)",
            lambda s: s.training.tokens is not None,
        ),
        Rule(
            "training.validation.source must be raw: it becomes the held-out part",
            "!has(self.training.validation) || !has(self.training.validation.source.source) || "
            "self.training.validation.source.source == 'raw'",
            lambda s: s.training.validation is None or s.training.validation.source.source in (None, "raw"),
        ),
        Rule(
            "names of arms must differ",
            "self.arms.all(a, self.arms.exists_one(b, b.name == a.name))",
            lambda s: len({a.name for a in s.arms}) == len(s.arms),
        ),
        Rule(
            "seeds must differ",
            "self.seeds.all(a, self.seeds.exists_one(b, b == a))",
            lambda s: len(set(s.seeds)) == len(s.seeds),
        ),
    )


def _tunes_on_mined(spec: InstructionPretrainingSpec) -> bool:
    s = spec.synthesis.synthesizer
    return s is not None and s.tune is not None and s.tune.mined


class InstructionPretrainingStatus(CommonStatus):
    """What is known of an InstructionPretraining."""

    synthesis: Annotated[
        str | None, Field(default=None, max_length=63, description="Progress of the synthesis, such as 37/128 (29%).")
    ] = None
    training: Annotated[
        str | None, Field(default=None, max_length=63, description="Progress of the training, such as 120/500.")
    ] = None
    gate: Annotated[
        Literal["Pending", "Passed", "Failed", "None"], Field(default="Pending", description="The gate's verdict.")
    ] = "Pending"


class InstructionPretraining(Resource):
    """Instruction Pre-Training (arXiv 2406.14491) from raw corpus to the answer whether it helped."""

    plural: ClassVar[str] = "instructionpretrainings"
    short_name: ClassVar[str] = "ipt"
    columns: ClassVar[tuple[PrinterColumn, ...]] = (
        PrinterColumn("Phase", ".status.phase"),
        PrinterColumn("Synthesis", ".status.display.synthesis"),
        PrinterColumn("Training", ".status.display.training"),
        PrinterColumn("Gate", ".status.gate"),
        PrinterColumn("ETA", ".status.display.eta"),
        PrinterColumn("Age", ".metadata.creationTimestamp", "date"),
        PrinterColumn("Queue", ".spec.queueName", priority=1),
        PrinterColumn("Model", ".status.display.model", priority=1),
        PrinterColumn("Arms", ".status.display.arms", priority=1),
        PrinterColumn("Cost", ".status.cost", priority=1),
        PrinterColumn("Output", ".status.output.uri", priority=1),
    )
    rules: ClassVar[tuple[Rule, ...]] = transition_rules(
        InstructionPretrainingSpec,
        mutable=("synthesis.parallelism", "synthesis.completionPolicy", "training.prepareParallelism"),
    )
    kind: Annotated[Literal["InstructionPretraining"], Field(description="Kind.")]
    spec: Annotated[InstructionPretrainingSpec, Field(description="What is wanted.")]
    status: Annotated[InstructionPretrainingStatus | None, Field(default=None, description="What is known.")] = None
