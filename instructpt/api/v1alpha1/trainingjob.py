"""TrainingJob: preparation (tokenize, pack) and training of one model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from instructpt.api.base import (
    STORAGE_LIMIT,
    ApiModel,
    Count,
    Input,
    ObjectRef,
    PrinterColumn,
    Resource,
    Rule,
    Seed,
    StorageSpec,
    Uri,
    must_name,
    storage_fits,
)
from instructpt.api.common import CommonStatus, Resources, RunPolicy
from instructpt.api.presets import CONTINUED
from instructpt.api.transitions import transition_rules
from instructpt.api.v1alpha1.mixturesource import MixtureSource, Objective
from instructpt.api.v1alpha1.synthesisjob import SplitName

Preset = Literal["tiny", "125m", "350m", "500m", "1.3b", "llama3-8b"]


class ModelInit(ApiModel):
    """Where the weights start: exactly one of a model, another job's export, a preset or a config."""

    from_: Annotated[
        Uri | None,
        Field(
            default=None,
            alias="from",
            description="Model to continue from: hub id, s3:// prefix or folder.",
        ),
    ] = None
    ref: Annotated[ObjectRef | None, Field(default=None, description="TrainingJob whose export is continued.")] = None
    preset: Annotated[
        Preset | None,
        Field(default=None, description="Named architecture, from scratch; llama3-8b continues the published weights."),
    ] = None
    config: Annotated[
        Mapping[str, Any] | None,
        Field(
            default=None,
            description="A transformers config with model_type, from scratch; laid over preset where both are set.",
            json_schema_extra={"x-kubernetes-preserve-unknown-fields": True},
        ),
    ] = None
    rules: ClassVar[tuple[Rule, ...]] = (
        must_name("ref", "TrainingJob"),
        Rule(
            "init needs exactly one of from, ref and preset/config",
            "(has(self.from) ? 1 : 0) + (has(self.ref) ? 1 : 0) + (has(self.preset) || has(self.config) ? 1 : 0) == 1",
            lambda s: sum((s.from_ is not None, s.ref is not None, s.preset is not None or s.config is not None)) == 1,
        ),
        Rule(
            "config cannot be laid over preset llama3-8b, which continues published weights; drop config, or give a "
            "whole config to train from scratch",
            "!has(self.config) || !has(self.preset) || self.preset != 'llama3-8b'",
            lambda s: s.config is None or s.preset not in CONTINUED,
        ),
    )

    @property
    def model(self) -> str | None:
        """The published or own model that is continued, by ``from`` or by a preset; None where weights are new."""
        return self.from_ or CONTINUED.get(self.preset or "")


class TokenizerTrain(ApiModel):
    """A byte-level BPE tokenizer trained on the run's own text."""

    vocab_size: Annotated[
        int, Field(default=4096, ge=300, le=262_144, description="Entries, special tokens included.")
    ] = 4096
    profile: Annotated[
        str | None,
        Field(default=None, max_length=63, description="Profile whose tags get a token each; a pipeline sets its own."),
    ] = None
    corpus: Annotated[
        Input | None,
        Field(default=None, description="Corpus it is trained on; empty takes the mixture's first source."),
    ] = None
    split: Annotated[SplitName | None, Field(default=None, description="Part of the corpus; empty takes all.")] = None
    rules: ClassVar[tuple[Rule, ...]] = (must_name("corpus.ref", "Corpus"),)


class TokenizerSpec(ApiModel):
    """Which tokenizer: a model's, or one trained in the preparation stage."""

    from_: Annotated[Uri | None, Field(default=None, alias="from", description="Hub id, s3:// prefix or folder.")] = (
        None
    )
    train: Annotated[
        TokenizerTrain | None, Field(default=None, description="Train a tokenizer on the run's own text.")
    ] = None
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "tokenizer needs exactly one of from and train",
            "has(self.from) != has(self.train)",
            lambda s: (s.from_ is None) != (s.train is None),
        ),
    )


class Optimizer(ApiModel):
    """Optimizer and its rates."""

    name: Annotated[
        Literal["adamw", "adafactor"],
        Field(
            default="adamw",
            description="Algorithm of the updates; adafactor keeps no moments of the size of the weights, and its rate "
            "is relative to them.",
        ),
    ] = "adamw"
    learning_rate: Annotated[
        float, Field(default=3e-4, gt=0, le=10, description="Learning rate after warm-up, the highest.")
    ] = 3e-4
    beta1: Annotated[
        float, Field(default=0.9, ge=0, lt=1, description="Decay of the mean of the gradients (first moment).")
    ] = 0.9
    beta2: Annotated[
        float, Field(default=0.95, ge=0, lt=1, description="Decay of the mean of their squares (second moment).")
    ] = 0.95
    epsilon: Annotated[float, Field(default=1e-8, gt=0, description="Added to the denominator.")] = 1e-8
    weight_decay: Annotated[float, Field(default=0.1, ge=0, description="Of matrices; norms and biases have none.")] = (
        0.1
    )


class Schedule(ApiModel):
    """Learning rate over steps."""

    name: Annotated[
        Literal["cosine", "constant", "wsd"],
        Field(default="cosine", description="Shape of the learning rate after warm-up."),
    ] = "cosine"
    warmup_fraction: Annotated[
        float, Field(default=0.02, ge=0, lt=1, description="Share of the steps that warm up.")
    ] = 0.02
    decay_fraction: Annotated[
        float, Field(default=0.2, ge=0, le=1, description="Of wsd: share of the steps that decay.")
    ] = 0.2
    final_fraction: Annotated[float, Field(default=0.1, ge=0, le=1, description="Last rate over the peak.")] = 0.1


class DeepSpeed(ApiModel):
    """DeepSpeed settings."""

    zero_stage: Annotated[
        int,
        Field(
            default=1,
            ge=0,
            le=3,
            description="What ranks share: 1 optimizer states, 2 gradients as well, 3 weights as well; 0 nothing.",
        ),
    ] = 1


class Kernels(ApiModel):
    """How the same numbers are computed faster."""

    attention: Annotated[
        Literal["auto", "blocks", "varlen", "mask"],
        Field(
            default="auto",
            description="Attention inside documents: blocks one by one, varlen by FlashAttention (GPU, bf16), mask "
            "over whole rows; auto takes varlen on a GPU and blocks on a CPU.",
        ),
    ] = "auto"
    liger: Annotated[
        bool, Field(default=False, description="Fused kernels of the package liger-kernel; GPU alone.")
    ] = False
    compile: Annotated[
        bool, Field(default=False, description="torch.compile for each layer; needs a compiler on the CPU.")
    ] = False


class Validation(ApiModel):
    """A loss on text that is not trained on, now and then."""

    source: Annotated[
        MixtureSource,
        Field(
            description="Its text; in a pipeline source raw is the held-out part. Weight and maxRepeats mean nothing."
        ),
    ]
    every_steps: Annotated[int, Field(default=100, ge=1, description="Steps between validations.")] = 100
    tokens: Annotated[
        Count, Field(default=262_144, description="Tokens that are read at most, the same every time.")
    ] = 262_144


class CheckpointSpec(ApiModel):
    """When checkpoints are written and how many stay."""

    every_steps: Annotated[int, Field(default=200, ge=1, description="Steps between checkpoints.")] = 200
    keep: Annotated[int, Field(default=2, ge=1, le=100, description="Checkpoints that stay.")] = 2
    upload_bytes_per_second: Annotated[
        int,
        Field(
            default=200_000_000,
            ge=1,
            description="Rate that the grace period is planned from, a node. Acted on by a cluster alone.",
        ),
    ] = 200_000_000


class TrainingSettings(ApiModel):
    """How a model is trained; shared by TrainingJob and the pipeline, and what an arm may override."""

    init: Annotated[ModelInit, Field(description="Where the weights start.")]
    tokenizer: Annotated[
        TokenizerSpec | None, Field(default=None, description="Tokenizer; empty takes that of init.")
    ] = None
    mixture: Annotated[
        tuple[MixtureSource, ...],
        Field(
            default=(MixtureSource(source="augmented"),),
            min_length=1,
            max_length=64,
            description="Sources with weights, as shares of tokens.",
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
        ),
    ] = (MixtureSource(source="augmented"),)
    tokens: Annotated[
        Count | None, Field(default=None, description="Non-padding tokens to train on, exactly. In place of epochs.")
    ] = None
    epochs: Annotated[
        int | None,
        Field(
            default=None,
            ge=1,
            le=1000,
            description="Passes over all sources, each in an order of its own. In place of tokens.",
        ),
    ] = None
    sequence_length: Annotated[int, Field(default=2048, ge=64, le=1_048_576, description="Tokens in a packed row.")] = (
        2048
    )
    global_batch_rows: Annotated[
        int, Field(default=32, ge=1, le=1_000_000, description="Rows in a step, over all ranks.")
    ] = 32
    micro_batch_rows: Annotated[
        int, Field(default=8, ge=1, le=65536, description="Rows in one forward pass of a rank.")
    ] = 8
    max_repeats: Annotated[int, Field(default=4, ge=1, le=1000, description="Passes over a source at most.")] = 4
    optimizer: Annotated[Optimizer, Field(default_factory=Optimizer, description="Optimizer and its rates.")]
    schedule: Annotated[Schedule, Field(default_factory=Schedule, description="Learning rate over steps.")]
    validation: Annotated[
        Validation | None, Field(default=None, description="A loss on held-out text during the training.")
    ] = None
    kernels: Annotated[Kernels, Field(default_factory=Kernels, description="How the same is computed faster.")]
    gradient_clip: Annotated[float, Field(default=1.0, gt=0, description="Largest global norm of the gradients.")] = 1.0
    precision: Annotated[
        Literal["auto", "bf16", "fp32"], Field(default="auto", description="auto is bf16 on a GPU and fp32 on a CPU.")
    ] = "auto"
    deepspeed: Annotated[
        DeepSpeed, Field(default_factory=DeepSpeed, description="How DeepSpeed divides the work over ranks.")
    ]
    nodes: Annotated[int, Field(default=1, ge=1, le=10_000, description="Pods that train one model together.")] = 1
    gpus_per_node: Annotated[
        int, Field(default=0, ge=0, le=64, description="GPUs a node; 0 takes one if there is one, else the CPU.")
    ] = 0
    processes_per_node: Annotated[
        int, Field(default=1, ge=1, le=64, description="Of CPU training: ranks a node; on GPUs it is gpusPerNode.")
    ] = 1
    resources: Annotated[Resources, Field(default_factory=Resources, description="CPU and memory a node.")]
    checkpoint: Annotated[
        CheckpointSpec,
        Field(default_factory=CheckpointSpec, description="When checkpoints are written and how many stay."),
    ]
    prepare_parallelism: Annotated[
        int, Field(default=1, ge=1, le=10_000, description="Workers of the preparation.")
    ] = 1
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "sequenceLength must be a multiple of 8; round it down or up",
            "!has(self.sequenceLength) || self.sequenceLength % 8 == 0",
            lambda s: s.sequence_length % 8 == 0,
        ),
        Rule(
            "globalBatchRows must be a multiple of the ranks (nodes x gpusPerNode, or nodes x processesPerNode "
            "on the CPU)",
            "self.globalBatchRows % (self.nodes * (self.gpusPerNode > 0 ? self.gpusPerNode : "
            "self.processesPerNode)) == 0",
            lambda s: s.global_batch_rows % s.ranks == 0,
        ),
        Rule(
            "training needs exactly one of tokens and epochs",
            "has(self.tokens) != has(self.epochs)",
            lambda s: (s.tokens is None) != (s.epochs is None),
        ),
        Rule(
            "epochs reads every source as often; weights hold for tokens",
            "!has(self.epochs) || !has(self.mixture) || self.mixture.all(m, !has(m.weight) || m.weight == 1.0)",
            lambda s: s.epochs is None or all(m.weight == 1.0 for m in s.mixture),
        ),
        Rule(
            "kernels.compile and zeroStage 3 do not go together; use zeroStage 2 or less",
            "!has(self.kernels) || !has(self.kernels.compile) || !self.kernels.compile || !has(self.deepspeed) || "
            "!has(self.deepspeed.zeroStage) || self.deepspeed.zeroStage < 3",
            lambda s: not s.kernels.compile or s.deepspeed.zero_stage < 3,
        ),
        Rule(
            "a preset or config from scratch must name a tokenizer (tokenizer.from or tokenizer.train); only "
            "preset tiny has a default",
            "has(self.tokenizer) || has(self.init.from) || has(self.init.ref) || "
            "(has(self.init.preset) && self.init.preset in ['tiny', 'llama3-8b'])",
            lambda s: (
                s.tokenizer is not None or s.init.model is not None or s.init.ref is not None or s.init.preset == "tiny"
            ),
        ),
    )

    @property
    def ranks(self) -> int:
        """Processes over all nodes."""
        return self.nodes * (self.gpus_per_node or self.processes_per_node)


class TrainingJobSpec(TrainingSettings, RunPolicy):
    """What a TrainingJob declares."""

    storage: Annotated[StorageSpec, Field(description="Where token shards, checkpoints and the export go.")]
    prepared: Annotated[
        StorageSpec | None,
        Field(
            default=None,
            description="Where tokenizers and token shards go, named by content so that jobs share them; empty: "
            "below storage.",
        ),
    ] = None
    objective: Annotated[
        Objective,
        Field(
            default="Pretraining",
            description="Pretraining has its loss on all tokens, the two tunings on answers only.",
        ),
    ] = "Pretraining"
    profile: Annotated[
        str,
        Field(
            default="instruction-synthesizer", max_length=63, description="Of SynthesizerTuning: wire format to learn."
        ),
    ] = "instruction-synthesizer"
    seed: Annotated[Seed, Field(default=1, description="Seed of weights and order.")] = 1
    rules: ClassVar[tuple[Rule, ...]] = (
        storage_fits("storage", STORAGE_LIMIT),
        storage_fits("prepared", STORAGE_LIMIT),
        Rule(
            "source augmented, raw and tuning are known inside an InstructionPretraining only; use ref or uri",
            "self.mixture.all(m, !has(m.source)) && (!has(self.validation) || !has(self.validation.source.source))",
            lambda s: (
                all(m.source is None for m in s.mixture)
                and (s.validation is None or s.validation.source.source is None)
            ),
        ),
    )


class RestartStatus(ApiModel):
    """The last time that the whole training was started again."""

    attempt: Annotated[int, Field(ge=2, description="Attempt that was started.")]
    cause: Annotated[str, Field(max_length=1024, description="Why the one before ended.")]
    time: Annotated[str, Field(description="When that was seen.", json_schema_extra={"format": "date-time"})]
    reached: Annotated[int, Field(default=0, ge=0, description="Step that it had come to.")] = 0
    resumed: Annotated[
        int | None, Field(default=None, ge=0, description="Step of the checkpoint that the new one went on from.")
    ] = None
    lost_steps: Annotated[int | None, Field(default=None, ge=0, description="Steps in between, done again.")] = None


class TrainingJobStatus(CommonStatus):
    """What is known of a TrainingJob."""

    launcher: Annotated[
        str | None, Field(default=None, max_length=63, description="What runs the training, such as PyTorchJob.")
    ] = None

    step: Annotated[int | None, Field(default=None, ge=0, description="Last finished step.")] = None
    steps: Annotated[int | None, Field(default=None, ge=0, description="Steps in all.")] = None
    loss: Annotated[
        float | None,
        Field(default=None, description="Loss of the last step, at the end the mean of the last ten, in nats a token."),
    ] = None
    validation_loss: Annotated[
        float | None, Field(default=None, description="Loss of the last validation, in nats a token.")
    ] = None
    checkpoint: Annotated[
        int | None, Field(default=None, ge=0, description="Step of the last verified checkpoint.")
    ] = None
    lost_steps: Annotated[
        int | None, Field(default=None, ge=0, description="Steps that restarts lost and that were done again, in all.")
    ] = None
    last_restart: Annotated[
        RestartStatus | None, Field(default=None, description="Cause and cost of the last restart.")
    ] = None


class TrainingJob(Resource):
    """Trains one model: pre-training, tuning a synthesizer, or instruction tuning."""

    plural: ClassVar[str] = "trainingjobs"
    short_name: ClassVar[str] = "trn"
    columns: ClassVar[tuple[PrinterColumn, ...]] = (
        PrinterColumn("Phase", ".status.phase"),
        PrinterColumn("Step", ".status.display.step"),
        PrinterColumn("Loss", ".status.display.loss"),
        PrinterColumn("Checkpoint", ".status.checkpoint", "integer"),
        PrinterColumn("Restarts", ".status.restarts", "integer"),
        PrinterColumn("Age", ".metadata.creationTimestamp", "date"),
        PrinterColumn("Objective", ".spec.objective", priority=1),
        PrinterColumn("Launcher", ".status.launcher", priority=1),
        PrinterColumn("Queue", ".spec.queueName", priority=1),
        PrinterColumn("Tok/s", ".status.display.throughput", priority=1),
        PrinterColumn("MFU", ".status.display.mfu", priority=1),
        PrinterColumn("ETA", ".status.display.eta", priority=1),
    )
    rules: ClassVar[tuple[Rule, ...]] = transition_rules(TrainingJobSpec, mutable=("prepareParallelism",))
    kind: Annotated[Literal["TrainingJob"], Field(description="Kind.")]
    spec: Annotated[TrainingJobSpec, Field(description="What is wanted.")]
    status: Annotated[TrainingJobStatus | None, Field(default=None, description="What is known.")] = None
