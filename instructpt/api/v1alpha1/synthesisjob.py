"""SynthesisJob: raw corpus -> instruction-augmented corpus."""

from __future__ import annotations

import re
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
    Scale,
    Seed,
    Share,
    StorageSpec,
    Uri,
    Url,
    must_name,
    storage_fits,
)
from instructpt.api.common import CommonStatus, CompletionPolicy, Resources, RunPolicy
from instructpt.api.transitions import transition_rules
from instructpt.api.v1alpha1.filters import Filters as Filters

_SECRET = re.compile("key$|token$|secret|password")

SplitName = Literal["tune", "train", "heldOut"]

DEFAULT_STRATEGY = "instruction-synthesizer"
OWN_STRATEGIES = (DEFAULT_STRATEGY, "mined")
NAME_PATTERN = r"^[a-z0-9]([-_.a-z0-9]*[a-z0-9])?$"
# No list of names: an image may bring strategies of its own, and the worker knows them.
StrategyName = Annotated[
    str,
    Field(
        default=DEFAULT_STRATEGY,
        max_length=63,
        pattern=NAME_PATTERN,
        description="How pairs come about: instruction-synthesizer asks a model, mined has rules; an image may bring "
        "others.",
    ),
]


class Synthesizer(ApiModel):
    """The model that writes the pairs, and the wire format it was tuned on."""

    model: Annotated[
        Uri | None,
        Field(default=None, description="Hub id, s3:// prefix with a manifest, or a folder."),
    ] = None
    ref: Annotated[ObjectRef | None, Field(default=None, description="TrainingJob whose export is the model.")] = None
    profile: Annotated[
        str,
        Field(default="instruction-synthesizer", max_length=63, description="Wire format of prompt and completion."),
    ] = "instruction-synthesizer"
    compat: Annotated[
        Literal["fixed", "reference"],
        Field(default="fixed", description="fixed repairs the reference code's faults; reference reproduces them."),
    ] = "fixed"
    rules: ClassVar[tuple[Rule, ...]] = (must_name("ref", "TrainingJob"),)


class Engine(ApiModel):
    """What generates: a model engine, or the rules of mined."""

    # No list of names: an image may bring engines of its own, and the worker knows them.
    name: Annotated[
        str,
        Field(
            default="vllm",
            max_length=63,
            pattern=NAME_PATTERN,
            description="vllm (GPU), transformers (CPU), openai (a server), mined (rules, no model); an image may "
            "bring others.",
        ),
    ] = "vllm"
    resources: Annotated[Resources, Field(default_factory=Resources, description="What one worker asks for.")]
    endpoint: Annotated[
        Url | None,
        Field(default=None, description="Of engine openai: base URL of the server, ending in /v1."),
    ] = None
    concurrency: Annotated[
        int | None,
        Field(default=None, ge=1, le=65536, description="Chains in flight in a worker; empty chooses by engine."),
    ] = None
    args: Annotated[
        Mapping[str, Any],
        Field(
            default_factory=dict,
            description="Passed to the engine as they are, such as vLLM's engine arguments.",
            json_schema_extra={"x-kubernetes-preserve-unknown-fields": True},
        ),
    ]
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "engine.args must not hold secrets: they stand in manifests; put a key in INSTRUCTPT_OPENAI_API_KEY",
            # Only in Python: CEL cannot look into a field whose values may be of any type.
            "",
            lambda s: not any(_SECRET.search(k.lower()) for k in s.args),
        ),
        Rule(
            "engine openai needs engine.endpoint, such as http://server:8000/v1",
            "self.name != 'openai' || has(self.endpoint)",
            lambda s: s.name != "openai" or s.endpoint is not None,
        ),
    )


class Sampling(ApiModel):
    """How completions are drawn. The defaults are the reference's (docs/concepts/method.md)."""

    temperature: Annotated[
        float,
        Field(default=0.0, ge=0.0, le=2.0, description="Randomness of the draw; 0 always takes the likeliest token."),
    ] = 0.0
    top_p: Annotated[
        float,
        Field(
            default=1.0,
            gt=0.0,
            le=1.0,
            description="Nucleus sampling: draw from the likeliest tokens that add up to this probability.",
        ),
    ] = 1.0
    max_tokens: Annotated[int, Field(default=400, ge=1, le=32768, description="Longest completion, in tokens.")] = 400
    context_window: Annotated[
        int, Field(default=4096, ge=64, le=1_048_576, description="Prompt and completion together, in tokens.")
    ] = 4096
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "maxTokens must be below contextWindow; lower maxTokens or raise contextWindow",
            "self.maxTokens < self.contextWindow",
            lambda s: s.max_tokens < s.context_window,
        ),
    )


class SynthesisSettings(ApiModel):
    """How text is synthesized; shared by SynthesisJob and the pipeline."""

    shots: Annotated[int, Field(default=3, ge=1, le=64, description="Documents in a chain (M of M-shot).")] = 3
    convert: Annotated[
        Share, Field(default=1.0, description="Share of the documents that get pairs; the rest stays raw.")
    ] = 1.0
    layout: Annotated[
        Literal["chain-local", "reference"],
        Field(
            default="chain-local",
            description="How documents form chains; reference has the reference code's rounds, within a micro-shard.",
        ),
    ] = "chain-local"
    sampling: Annotated[Sampling, Field(default_factory=Sampling, description="How completions are drawn.")]
    templates: Annotated[
        str,
        Field(
            default="native",
            max_length=2048,
            description="What turns chains into text: native, or the path, where the workers run, of a checkout of the "
            "reference code (LMOps, instruction_pretrain), whose pattern file is Python and is run.",
        ),
    ] = "native"
    filters: Annotated[Filters, Field(default_factory=Filters, description="Which pairs are dropped.")]
    engine: Annotated[
        Engine, Field(default_factory=Engine, description="What generates the pairs, and on which hardware.")
    ]
    parallelism: Annotated[
        int, Field(default=1, ge=1, le=10_000, description="Workers that share the micro-shards.")
    ] = 1
    lease_seconds: Annotated[
        int, Field(default=60, ge=5, le=3600, description="A worker silent for this long loses its micro-shard.")
    ] = 60
    seed: Annotated[Seed, Field(default=12345, description="Seed of templates and sampling.")] = 12345
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "filters.minLikelihoodGain needs a model; engine mined has none",
            "!(has(self.filters) && has(self.filters.minLikelihoodGain) && has(self.engine) && has(self.engine.name) "
            "&& self.engine.name == 'mined')",
            lambda s: s.filters.min_likelihood_gain is None or s.engine.name != "mined",
        ),
    )


class SynthesisJobSpec(SynthesisSettings, RunPolicy):
    """What a SynthesisJob declares."""

    storage: Annotated[StorageSpec, Field(description="Where the augmented corpus goes.")]
    input: Annotated[Input, Field(description="Corpus: its manifest's prefix, or a ref to a Corpus.")]
    split: Annotated[SplitName | None, Field(default=None, description="Part of the corpus; empty takes all.")] = None
    strategy: StrategyName = DEFAULT_STRATEGY
    synthesizer: Annotated[
        Synthesizer | None, Field(default=None, description="The model; none for strategies of rules.")
    ] = None
    max_documents: Annotated[
        Count | None, Field(default=None, description="Take only the first so many documents (run --sample).")
    ] = None
    completion_policy: Annotated[
        CompletionPolicy,
        Field(default_factory=CompletionPolicy, description="When it is done although documents failed."),
    ]
    rules: ClassVar[tuple[Rule, ...]] = (
        storage_fits("storage", STORAGE_LIMIT),
        must_name("input.ref", "Corpus"),
        Rule(
            "strategy mined and engine.name mined go together; set both or neither",
            f"!(self.strategy in {list(OWN_STRATEGIES)}) || "
            "(self.strategy == 'mined') == (has(self.engine) && has(self.engine.name) && self.engine.name == 'mined')",
            lambda s: s.strategy not in OWN_STRATEGIES or (s.strategy == "mined") == (s.engine.name == "mined"),
        ),
        Rule(
            "exactly one of synthesizer.model and synthesizer.ref must be set, and neither for strategies of rules",
            "self.strategy == 'mined' || (self.strategy != 'instruction-synthesizer' && has(self.engine) && "
            "has(self.engine.name) && self.engine.name == 'mined') ? !has(self.synthesizer) || "
            "(!has(self.synthesizer.model) && !has(self.synthesizer.ref)) "
            ": has(self.synthesizer) && (has(self.synthesizer.model) != has(self.synthesizer.ref))",
            lambda s: _synthesizer_fits(s),
        ),
    )


def _synthesizer_fits(spec: SynthesisJobSpec) -> bool:
    synthesizer = spec.synthesizer
    has_model = synthesizer is not None and synthesizer.model is not None
    has_ref = synthesizer is not None and synthesizer.ref is not None
    return not has_model and not has_ref if has_rules(spec.strategy, spec.engine.name) else has_model != has_ref


def has_rules(strategy: str, engine: str) -> bool:
    """Whether a strategy is one of rules: a synthesizer has no place beside it."""
    return strategy == "mined" or (strategy != DEFAULT_STRATEGY and engine == "mined")


class SynthesisJobStatus(CommonStatus):
    """What is known of a SynthesisJob."""

    selector: Annotated[
        str | None, Field(default=None, max_length=512, description="Labels of its workers, for autoscalers.")
    ] = None


class SynthesisJob(Resource):
    """Turns a raw corpus into an instruction-augmented corpus: documents plus synthesized pairs."""

    plural: ClassVar[str] = "synthesisjobs"
    short_name: ClassVar[str] = "syn"
    columns: ClassVar[tuple[PrinterColumn, ...]] = (
        PrinterColumn("Phase", ".status.phase"),
        PrinterColumn("Progress", ".status.display.progress"),
        PrinterColumn("Pairs", ".status.display.pairs"),
        PrinterColumn("Restarts", ".status.restarts", "integer"),
        PrinterColumn("Age", ".metadata.creationTimestamp", "date"),
        PrinterColumn("Queue", ".spec.queueName", priority=1),
        PrinterColumn("Model", ".status.display.model", priority=1),
        PrinterColumn("Failed", ".status.counts.dead_letters", "integer", 1),
        PrinterColumn("Tok/s", ".status.display.throughput", priority=1),
        PrinterColumn("ETA", ".status.display.eta", priority=1),
        PrinterColumn("Output", ".status.output.uri", priority=1),
    )
    scale: ClassVar[Scale] = Scale(".spec.parallelism", ".status.workers", ".status.selector")
    rules: ClassVar[tuple[Rule, ...]] = transition_rules(SynthesisJobSpec, mutable=("parallelism", "completionPolicy"))
    kind: Annotated[Literal["SynthesisJob"], Field(description="Kind.")]
    spec: Annotated[SynthesisJobSpec, Field(description="What is wanted.")]
    status: Annotated[SynthesisJobStatus | None, Field(default=None, description="What is known.")] = None
