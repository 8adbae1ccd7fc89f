"""What a plan will take, before anything is spent: shards, tokens, steps, memory and time of each stage.

Estimates are arithmetic over the spec, a probe of the corpus (if it can be reached) and the machine; each is marked
``~`` where it is shown. The rates below are assumptions, printed with the plan, not promises.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from instructpt.api.accelerators import DEFAULT_ACCELERATOR, PRODUCT_LABEL, Accelerator, accelerator, from_product
from instructpt.api.presets import architecture, known_shape, num_parameters
from instructpt.api.v1alpha1 import Corpus, EvaluationJob, InstructionPretraining, SynthesisJob, TrainingJob
from instructpt.api.v1alpha1.corpus import Split
from instructpt.api.v1alpha1.synthesisjob import SynthesisJobSpec
from instructpt.api.v1alpha1.trainingjob import TrainingJobSpec
from instructpt.plan.fit import Fit, Layout, Shape, fit, seconds
from instructpt.plan.grace import parameters_of, training_grace_seconds
from instructpt.plan.pipeline import children
from instructpt.plan.planner import AnyResource
from instructpt.plan.training import DEFAULT_TINY_VOCABULARY

BYTES_PER_TOKEN = 4.0
FILL = 0.97
CPU_FLOPS_PER_CORE = 20e9
MFU = 0.4
"""Share of a GPU's peak that a training reaches; ``plan --mfu`` states another."""
INSPECT_BYTES_PER_SECOND = 20e6
MINED_DOCUMENTS_PER_SECOND = 500.0
_STATE_BYTES = 12
"""Of a parameter in a checkpoint: fp32 weights and two moments."""
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
    """What trains: this node, and the GPUs that are assumed.

    Attributes:
        cores: Of a node.
        memory_bytes: Of a node.
        gpu: Kind of GPU; None takes what the pod template selects, else the default.
        mfu: Share of the GPUs' peak that is reached.
    """

    cores: int
    memory_bytes: int
    gpu: Accelerator | None = None
    mfu: float = MFU


@dataclass(frozen=True, slots=True, kw_only=True)
class StageEstimate:
    """Figures of one step; ``None`` where nothing can be said yet.

    Attributes:
        memory_bytes: Of a GPU, or of all ranks of a node on a CPU.
        room_bytes: Memory that is there for it, where that is not this machine's.
        fit: What of it is for what, of one rank.
        gpu: Kind of GPU that is assumed; None on a CPU.
        devices: GPUs in all.
        checkpoint_bytes: State that a node holds in its memory while a checkpoint is written.
        advice: What would fit, where this does not.
        grace_seconds: What a pod of a training gets on a cluster between SIGTERM and SIGKILL.
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
    room_bytes: int | None = None
    fit: Fit | None = None
    gpu: str | None = None
    devices: int = 0
    checkpoint_bytes: int | None = None
    advice: str | None = None

    def fits(self, machine: Machine) -> bool | None:
        """Whether the memory is there; ``None`` where unknown."""
        if self.memory_bytes is None:
            return None
        return self.memory_bytes <= (machine.memory_bytes if self.room_bytes is None else self.room_bytes)

    @property
    def gpu_hours(self) -> float | None:
        """GPUs times hours; None on a CPU and where the time is not known."""
        return self.seconds * self.devices / 3600 if self.devices and self.seconds is not None else None


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


def presets_of(resource: AnyResource) -> tuple[str, ...]:
    """Presets that an object names, in order."""
    named: list[str | None] = []
    if isinstance(resource, InstructionPretraining):
        spec = resource.spec
        tune = spec.synthesis.synthesizer.tune if spec.synthesis.synthesizer else None
        named = [tune.init.preset if tune else None, spec.training.init.preset]
        named += [arm.training.init.preset for arm in spec.arms if arm.training.init is not None]
    elif isinstance(resource, TrainingJob):
        named = [resource.spec.init.preset]
    return tuple(dict.fromkeys(name for name in named if name))


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
    config = architecture(spec.init.preset, spec.init.config) or known_shape(spec.init.model)
    grace = _grace(spec, config)
    if "hidden_size" not in config:
        return StageEstimate(step=step, tokens=spec.tokens, steps=steps, grace_seconds=grace)
    shape = shape_of(spec, config)
    gpu = _gpu(spec, machine) if spec.gpus_per_node else None
    parts = fit(shape, layout_of(spec))
    saved = _STATE_BYTES * shape.parameters // spec.nodes
    need = parts.total if gpu else parts.total * spec.processes_per_node + saved
    room = gpu.memory_bytes if gpu else None
    if gpu:
        rate, mfu = gpu.flops * spec.ranks, machine.mfu
    else:
        rate, mfu = CPU_FLOPS_PER_CORE * machine.cores * spec.nodes, 1.0
    took = None
    if spec.tokens is not None:
        took = START_SECONDS["gpu" if gpu else "cpu"] + seconds(
            shape, tokens=spec.tokens, length=spec.sequence_length, peak_flops=rate, mfu=mfu
        )
    limit = machine.memory_bytes if room is None else room
    return StageEstimate(
        step=step,
        tokens=spec.tokens,
        steps=steps,
        parameters=shape.parameters,
        memory_bytes=need,
        room_bytes=room,
        seconds=took,
        grace_seconds=grace,
        fit=parts,
        gpu=gpu.name if gpu else None,
        devices=spec.ranks if gpu else 0,
        checkpoint_bytes=saved,
        advice=_advice(spec, shape, limit - (0 if gpu else saved)) if need > limit else None,
    )


def _gpu(spec: TrainingJobSpec, machine: Machine) -> Accelerator:
    """As stated, else as the pod template selects, else the default."""
    selected = spec.pod_template.node_selector if spec.pod_template is not None else {}
    named = from_product(str((selected or {}).get(PRODUCT_LABEL, "")))
    return machine.gpu or named or accelerator(DEFAULT_ACCELERATOR)


def shape_of(spec: TrainingJobSpec, config: Mapping[str, Any]) -> Shape:
    """The model's shape, with the tokenizer's vocabulary where the model is new."""
    vocabulary = int(config.get("vocab_size", 0)) or _vocabulary(spec)
    return Shape.of(config, num_parameters(config, vocabulary), vocabulary)


def layout_of(spec: TrainingJobSpec) -> Layout:
    """How the job trains."""
    rows = max(1, spec.global_batch_rows // spec.ranks)
    micro = min(spec.micro_batch_rows, rows)
    gpu = spec.gpus_per_node > 0
    bf16 = spec.precision == "bf16" or (spec.precision == "auto" and gpu)
    stage = spec.deepspeed.zero_stage
    return Layout(
        zero_stage=max(1, stage) if bf16 else stage,  # as training does, which keeps exact weights
        ranks=spec.ranks,
        tokens=micro * spec.sequence_length,
        micro_batches=-(-rows // micro),
        precision="bf16" if bf16 else "fp32",
        device="gpu" if gpu else "cpu",
        adafactor=spec.optimizer.name == "adafactor",
    )


def _advice(spec: TrainingJobSpec, shape: Shape, room: int) -> str:
    """The mildest change of micro batch and ZeRO stage that fits."""
    layout, processes = layout_of(spec), 1 if spec.gpus_per_node else spec.processes_per_node
    rows = layout.tokens // spec.sequence_length
    halves = [rows >> n for n in range(rows.bit_length()) if rows >> n]
    for stage in range(max(1, layout.zero_stage), 4):
        for micro in halves:
            changed = replace(layout, zero_stage=stage, tokens=micro * spec.sequence_length)
            if fit(shape, changed).total * processes <= room:
                stages = "" if stage == layout.zero_stage else f"deepspeed.zeroStage {stage}"
                micros = "" if micro == rows else f"microBatchRows {micro}"
                return " and ".join(text for text in (stages, micros) if text)
    return "more GPUs (nodes, gpusPerNode), larger ones, or a smaller sequenceLength"


def _grace(spec: TrainingJobSpec, config: dict[str, object]) -> int:
    user = spec.pod_template.termination_grace_period_seconds if spec.pod_template is not None else None
    size, rate = parameters_of(config, spec.init.model), spec.checkpoint.upload_bytes_per_second
    planned = training_grace_seconds(size, rate, spec.nodes)
    return planned if user is None else user


def _vocabulary(spec: TrainingJobSpec) -> int:
    if spec.tokenizer is not None and spec.tokenizer.train is not None:
        return spec.tokenizer.train.vocab_size
    named = known_shape(spec.tokenizer.from_ if spec.tokenizer is not None else None)
    return int(named.get("vocab_size", DEFAULT_TINY_VOCABULARY if spec.init.preset == "tiny" else 32_000))
