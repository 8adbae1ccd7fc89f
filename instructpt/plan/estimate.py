"""What a plan will take, before anything is spent: shards, tokens, steps, memory and time of each stage.

Estimates are arithmetic over the spec, a probe of the corpus (if it can be reached) and the machine; each is marked
``~`` where it is shown. The rates below are assumptions, printed with the plan, not promises.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from instructpt.api.presets import architecture, num_parameters
from instructpt.api.v1alpha1 import Corpus, EvaluationJob, InstructionPretraining, SynthesisJob, TrainingJob
from instructpt.api.v1alpha1.corpus import Split
from instructpt.api.v1alpha1.synthesisjob import SynthesisJobSpec
from instructpt.api.v1alpha1.trainingjob import TrainingJobSpec
from instructpt.plan.grace import parameters_of, training_grace_seconds
from instructpt.plan.pipeline import children
from instructpt.plan.planner import AnyResource
from instructpt.plan.training import DEFAULT_TINY_VOCABULARY

BYTES_PER_TOKEN = 4.0
FILL = 0.97
CPU_FLOPS_PER_CORE = 20e9
GPU_FLOPS = 150e12
INSPECT_BYTES_PER_SECOND = 20e6
MINED_DOCUMENTS_PER_SECOND = 500.0
START_SECONDS = {"cpu": 8.0, "gpu": 60.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What a look at the corpus told.

    Attributes:
        documents: Documents in all.
        bytes: Text bytes in all.
        sampled: Documents that were read to get there; equal to ``documents`` where all were.
    """

    documents: int
    bytes: int
    sampled: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What one node offers."""

    cores: int
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StageEstimate:
    """Figures of one step; ``None`` where nothing can be said yet.

    ``grace_seconds`` is what a pod of a training gets on a cluster between SIGTERM and SIGKILL.
    """

    step: str
    shards: int | None = None
    documents: int | None = None
    tokens: int | None = None
    steps: int | None = None
    parameters: int | None = None
    memory_bytes: int | None = None
    seconds: float | None = None
    grace_seconds: int | None = None

    def fits(self, machine: Machine) -> bool | None:
        """Whether the memory is there; ``None`` where unknown."""
        return None if self.memory_bytes is None else self.memory_bytes <= machine.memory_bytes


def estimate(resource: AnyResource, probe: Probe | None, machine: Machine) -> tuple[StageEstimate, ...]:
    """Estimates of an object's steps, in order; preparation is counted with its training."""
    if not isinstance(resource, InstructionPretraining):
        return (_estimate_one(resource, resource.kind.lower(), probe, Split(), machine, None),)
    split = resource.spec.corpus.split
    tuned = None
    rows = []
    for child in children(resource):
        row = _estimate_one(child.object, child.step, probe, split, machine, tuned)
        if child.step == "synthesizer":
            tuned = row.parameters
        rows.append(row)
    return tuple(rows)


def _estimate_one(
    resource: AnyResource, step: str, probe: Probe | None, split: Split, machine: Machine, tuned: int | None
) -> StageEstimate:
    match resource:
        case Corpus(spec=spec):
            return _corpus(step, probe, spec.shards, spec.documents_per_shard)
        case SynthesisJob(spec=spec):
            part = {"tune": split.tune, "train": split.train, "heldOut": split.held_out}.get(spec.split or "", 1.0)
            return _synthesis(step, spec, probe, part, machine, tuned)
        case TrainingJob(spec=spec):
            return _training(step, spec, machine)
        case EvaluationJob(spec=spec):
            return StageEstimate(step=step, documents=len(spec.models) * spec.max_documents)
    raise AssertionError(f"no estimate for {resource.kind}")


def _corpus(step: str, probe: Probe | None, shards: int | None, per_shard: int) -> StageEstimate:
    if probe is None:
        return StageEstimate(step=step, shards=shards)
    return StageEstimate(
        step=step,
        shards=shards or math.ceil(probe.documents / per_shard),
        documents=probe.documents,
        tokens=round(probe.bytes / BYTES_PER_TOKEN),
        seconds=START_SECONDS["cpu"] / 4 + probe.bytes / INSPECT_BYTES_PER_SECOND,
    )


def _synthesis(
    step: str, spec: SynthesisJobSpec, probe: Probe | None, part: float, machine: Machine, parameters: int | None
) -> StageEstimate:
    documents = None if probe is None else round(probe.documents * part)
    if documents is None or probe is None:
        return StageEstimate(step=step)
    text_tokens = round(probe.bytes * part / BYTES_PER_TOKEN)
    if spec.engine.name == "mined":
        return StageEstimate(
            step=step, documents=documents, tokens=text_tokens, seconds=2 + documents / MINED_DOCUMENTS_PER_SECOND
        )
    converted = documents * spec.convert
    written = round(converted * spec.sampling.max_tokens)
    seconds = None
    if parameters is not None:
        read = text_tokens * spec.convert * (spec.shots + 1) / 2
        # Decoding one token at a time reads every weight: on a CPU it runs at about a tenth of the matrix rate.
        work = 2.0 * parameters * (read + 10.0 * written)
        seconds = START_SECONDS["cpu"] + work / (CPU_FLOPS_PER_CORE * machine.cores)
    return StageEstimate(
        step=step, documents=documents, tokens=text_tokens + written, parameters=parameters, seconds=seconds
    )


def _training(step: str, spec: TrainingJobSpec, machine: Machine) -> StageEstimate:
    steps = None  # of epochs: known once the sources are packed
    if spec.tokens is not None:
        steps = math.ceil(spec.tokens / (spec.global_batch_rows * spec.sequence_length * FILL))
    config = architecture(spec.init.preset, spec.init.config)
    grace = _grace(spec, config)
    if "hidden_size" not in config:
        return StageEstimate(step=step, tokens=spec.tokens, steps=steps, grace_seconds=grace)
    vocabulary = int(config.get("vocab_size", 0)) or _vocabulary(spec)
    parameters = num_parameters(config, vocabulary)
    gpu = spec.gpus_per_node > 0
    rate = GPU_FLOPS * spec.ranks if gpu else CPU_FLOPS_PER_CORE * machine.cores * spec.nodes
    return StageEstimate(
        step=step,
        tokens=spec.tokens,
        steps=steps,
        parameters=parameters,
        memory_bytes=memory_per_rank(spec, config, parameters, vocabulary) * (1 if gpu else spec.processes_per_node),
        seconds=(
            None
            if spec.tokens is None
            else START_SECONDS["gpu" if gpu else "cpu"] + 6.0 * parameters * spec.tokens / rate
        ),
        grace_seconds=grace,
    )


def _grace(spec: TrainingJobSpec, config: dict[str, object]) -> int:
    user = spec.pod_template.termination_grace_period_seconds if spec.pod_template is not None else None
    size, rate = parameters_of(config, spec.init.from_), spec.checkpoint.upload_bytes_per_second
    planned = training_grace_seconds(size, rate, spec.nodes)
    return planned if user is None else user


def _vocabulary(spec: TrainingJobSpec) -> int:
    if spec.tokenizer is not None and spec.tokenizer.train is not None:
        return spec.tokenizer.train.vocab_size
    return DEFAULT_TINY_VOCABULARY if spec.init.preset == "tiny" else 32_000


def memory_per_rank(spec: TrainingJobSpec, config: dict[str, object], parameters: int, vocabulary: int) -> int:
    """Bytes a rank needs: states divided by the ZeRO stage, activations of one micro batch, logits."""
    stage, ranks = spec.deepspeed.zero_stage, spec.ranks
    # fp32: 4 bytes of weights, 4 of gradients, 8 of AdamW moments; bf16 with fp32 masters comes to the same.
    weights, gradients, moments = 4 * parameters, 4 * parameters, 8 * parameters
    states = (
        weights / (ranks if stage >= 3 else 1)
        + gradients / (ranks if stage >= 2 else 1)
        + moments / (ranks if stage >= 1 else 1)
    )
    tokens = spec.micro_batch_rows * spec.sequence_length
    width = int(str(config["hidden_size"])) * int(str(config["num_hidden_layers"]))
    activations = tokens * width * 34 * 2
    attention = (
        spec.micro_batch_rows * spec.sequence_length**2 * int(str(config["num_attention_heads"])) * 4
        if spec.gpus_per_node == 0
        else 0
    )
    logits = tokens * vocabulary * 4 * 3
    return int(states + activations + attention + logits)
