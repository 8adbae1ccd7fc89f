"""RunSpec: the one file that a worker reads, and StageResult: what a finished stage leaves behind.

A RunSpec holds URIs, digests and counts, never lists of shards: it stays below 64 KiB whatever the size of the corpus
(protocols.md 1). Its hash stands in the worker's argv; a worker refuses a RunSpec whose hash differs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field

from instructpt.api.base import Access, ApiModel, Rule, StorageSpec
from instructpt.api.common import StageResult as StageResult
from instructpt.api.v1alpha1.corpus import CorpusSource, Split
from instructpt.api.v1alpha1.corpusfilters import CorpusFilters
from instructpt.api.v1alpha1.evaluationjob import EvaluationSettings
from instructpt.api.v1alpha1.mixturesource import Objective, SourceFormat
from instructpt.api.v1alpha1.sourceformats import Formatting, TaskCollection
from instructpt.api.v1alpha1.synthesisjob import SplitName, SynthesisSettings
from instructpt.api.v1alpha1.trainingjob import CheckpointSpec, DeepSpeed, Kernels, Optimizer, Schedule

MAX_RUNSPEC_BYTES = 64 * 1024
MAX_RESULT_BYTES = 4096

WorkerVerb = Literal["inspect", "synthesize", "prepare", "train", "evaluate", "finalize"]
StageKind = Literal["inspect", "synthesize", "tokenizer", "pack", "train", "evaluate", "report"]


class ResolvedInput(Access):
    """An input whose place and digest are known."""

    uri: str = Field(description="Prefix with manifest.json, a folder, a file or a hub id.")
    digest: str | None = Field(default=None, description="sha256 its manifest must have; empty where there is none.")


class InspectRun(ApiModel):
    """Corpus -> micro-shards and a manifest."""

    source: CorpusSource
    split: Split
    documents_per_shard: int
    shards: int | None = None
    tokenizer: str | None = None
    filters: CorpusFilters | None = None


class SynthesizeRun(ApiModel):
    """Micro-shards of a Corpus -> chains with pairs."""

    corpus: ResolvedInput
    split: SplitName | None = None
    max_documents: int | None = None
    strategy: str
    model: ResolvedInput | None = None
    profile: str = "instruction-synthesizer"
    compat: Literal["fixed", "reference"] = "fixed"
    settings: SynthesisSettings


class PreparedSource(ResolvedInput):
    """Text that is tokenized: an augmented corpus, a Corpus, or plain files."""

    name: str
    format: SourceFormat
    split: SplitName | None = None
    max_documents: int | None = None
    text_field: str = "text"
    question_field: str = "question"
    answer_field: str = "answer"
    formatting: Formatting | None = None
    tasks: TaskCollection | None = None


class TokenizerRun(ApiModel):
    """Train a byte-level BPE tokenizer on a source."""

    source: PreparedSource
    vocab_size: int
    profile: str | None = None


class PackRun(ApiModel):
    """Tokenize and pack one source into token shards."""

    source: PreparedSource
    tokenizer: ResolvedInput
    sequence_length: int
    objective: Objective
    profile: str = "instruction-synthesizer"


class InitRun(ApiModel):
    """Where weights start: a model, or a transformers config (dictionary) from scratch."""

    model: ResolvedInput | None = None
    config: Mapping[str, Any] | None = None


class TrainSource(ResolvedInput):
    """Token shards and their part in the mixture."""

    name: str
    weight: float
    max_repeats: int
    repeats: int | None = None
    max_tokens: int | None = None


class ValidationRun(ApiModel):
    """Token shards whose loss is taken every so many steps."""

    source: TrainSource
    every_steps: int
    tokens: int


class TrainRun(ApiModel):
    """Train one model on a mixture of token shards, for so many tokens or passes over all sources."""

    objective: Objective
    profile: str | None = None
    init: InitRun
    tokenizer: ResolvedInput
    sources: tuple[TrainSource, ...]
    tokens: int | None = None
    epochs: int | None = None
    validation: ValidationRun | None = None
    kernels: Kernels | None = None
    sequence_length: int
    global_batch_rows: int
    micro_batch_rows: int
    optimizer: Optimizer
    schedule: Schedule
    gradient_clip: float
    precision: Literal["auto", "bf16", "fp32"]
    deepspeed: DeepSpeed
    nodes: int = 1
    processes_per_node: int = 1
    gpus_per_node: int = 0
    checkpoint: CheckpointSpec
    seed: int


class EvaluatedModel(ResolvedInput):
    """A model to measure."""

    name: str
    seed: int | None = None


class EvaluateRun(ApiModel):
    """Models x tasks on held-out documents."""

    models: tuple[EvaluatedModel, ...]
    baseline: str | None = None
    corpus: ResolvedInput
    split: SplitName | None = "heldOut"
    settings: EvaluationSettings


class StageOutput(ResolvedInput):
    """A finished stage, as the report reads it."""

    step: str
    kind: StageKind
    arm: str | None = None
    seed: int | None = None


class ReportRun(ApiModel):
    """Everything a run produced -> report.json and report.html."""

    stages: tuple[StageOutput, ...]
    baseline: str = "vanilla"


class RunSpec(ApiModel):
    """What one worker is to do: exactly one section, and for ``finalize`` the section of the stage it closes."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "a RunSpec needs exactly one section",
            "",
            lambda s: sum(getattr(s, name) is not None for name in SECTIONS) == 1,
        ),
    )

    format_version: Literal[1] = 1
    verb: WorkerVerb
    owner_kind: str
    owner_name: str
    step: str
    output: StorageSpec
    parallelism: int = 1
    code_version: str
    inspect: InspectRun | None = None
    synthesize: SynthesizeRun | None = None
    tokenizer: TokenizerRun | None = None
    pack: PackRun | None = None
    train: TrainRun | None = None
    evaluate: EvaluateRun | None = None
    report: ReportRun | None = None

    @property
    def stage(self) -> StageKind:
        """Which section is set."""
        return next(name for name in SECTIONS if getattr(self, name) is not None)

    def finalizer(self) -> Self:
        """The same stage, to be closed."""
        return self.model_copy(update={"verb": "finalize", "parallelism": 1})

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no white space."""
        return canonical_json(self.to_wire())

    @property
    def hash(self) -> str:
        """Of :meth:`to_json`, see :func:`hash_of`."""
        return hash_of(self.to_json().encode())

    def work_key(self) -> str:
        """Hash of what the stage computes: no place, no number of workers.

        It names the stage's work and its cached result.
        Inputs count by digest; only an input without one counts by its URI. What is as the schema has it by default
        does not count: a field that a later version adds must not make the work of a run that is under way another.
        """
        section = getattr(self, self.stage).model_dump(mode="json", by_alias=True, exclude_defaults=True)
        wire = {self.stage: _without_places(section), "codeVersion": self.code_version}
        settings = wire["synthesize"]["settings"] if self.synthesize else {}
        for name in ("parallelism", "leaseSeconds"):
            settings.pop(name, None)
        if self.train is not None:
            wire["train"].pop("checkpoint", None)
        return hashlib.sha256(canonical_json(wire).encode()).hexdigest()[:16]


def hash_of(data: bytes) -> str:
    """First 16 hex digits of the sha256 of a RunSpec's bytes."""
    return hashlib.sha256(data).hexdigest()[:16]


def _without_places(value: Any) -> Any:
    if isinstance(value, dict):
        hidden = {"endpoint", "region", "secretRef"} | ({"uri"} if "digest" in value else set())
        return {k: _without_places(v) for k, v in value.items() if k not in hidden}
    if isinstance(value, list):
        return [_without_places(v) for v in value]
    return value


SECTIONS: tuple[StageKind, ...] = ("inspect", "synthesize", "tokenizer", "pack", "train", "evaluate", "report")


def canonical_json(value: object) -> str:
    """Sorted keys, no white space, UTF-8: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
