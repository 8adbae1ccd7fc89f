"""Whether a training fits its devices: bytes a rank needs, part by part, and the time at a stated share of the peak.

The states follow Rajbhandari et al., ZeRO, arXiv 1910.02054, section 3, with what DeepSpeed 0.19 holds beside them: its
own fp32 copy of the weights, the bucket in which gradients are reduced, the weights that stage 3 keeps gathered.
Activations are the tensors that a Llama layer of transformers keeps for its backward pass, counted one by one; nothing
is recomputed. ``benchmarks/bench_fit.py`` compares all this with measured peaks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Precision = Literal["bf16", "fp32"]
Device = Literal["cpu", "gpu"]

REDUCE_BUCKET = 500_000_000
"""Elements of the bucket in which DeepSpeed reduces gradients: allocated whole on a GPU, touched as needed on a CPU."""
MAX_LIVE = 1_000_000_000
"""Parameters that stage 3 keeps gathered at most."""
CHUNK_LOGITS: Mapping[Device, int] = {"cpu": 1 << 23, "gpu": 1 << 27}
"""As in training.losses (a test compares them): logits that are held at once."""
GPU_RUNTIME_BYTES = 1_500_000_000
"""CUDA context, cuBLAS and NCCL: memory of the device that no tensor has."""
CPU_HEAP = 1.4
"""What the C library's heap keeps over what was in use at most, where tensors of less than 32 MiB come and go; fitted
to ``benchmarks/results/fit.json``. Larger ones have mappings of their own, which do not use what the heap has free: so
on a CPU parts add up that are not needed at the same time."""
GPU_HEAP = 1.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What of a model decides its memory.

    Attributes:
        parameters: With embeddings.
        key_width: Key heads times head size.
        query_width: Heads times head size.
    """

    parameters: int
    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    query_width: int
    key_width: int

    @classmethod
    def of(cls, config: Mapping[str, Any], parameters: int, vocabulary: int) -> Shape:
        """From a Llama-shaped transformers config."""
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        size = int(config.get("head_dim") or hidden // heads)
        return cls(
            parameters=parameters, vocabulary=vocabulary, hidden=hidden, layers=int(config["num_hidden_layers"]),
            intermediate=int(config["intermediate_size"]), query_width=heads * size,
            key_width=int(config.get("num_key_value_heads") or heads) * size,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How it is trained.

    Attributes:
        tokens: Of a micro batch: rows times sequence length.
        micro_batches: Of a rank in a step.
    """

    zero_stage: int
    ranks: int
    tokens: int
    micro_batches: int
    precision: Precision
    device: Device
    adafactor: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Bytes of one rank at its peak, by what they are for.

    Attributes:
        weights: As the passes use them; of stage 3 a part and what is gathered.
        gradients: Kept over micro batches, and the fp32 share that a step is taken with.
        optimizer: fp32 weights and moments.
        buffers: In which gradients are reduced.
        activations: Kept for the backward pass of one micro batch.
        logits: Of one piece of the loss, and the gradient of the head that the loss makes.
        overhead: Of allocator and runtime.
    """

    weights: int
    gradients: int
    optimizer: int
    buffers: int
    activations: int
    logits: int
    overhead: int

    @property
    def total(self) -> int:
        """The peak."""
        return sum(asdict(self).values())

    def to_dict(self) -> dict[str, int]:
        """Parts and total."""
        return {**asdict(self), "total": self.total}


def fit(shape: Shape, layout: Layout) -> Fit:
    """The peak of one rank."""
    states, activations, logits = _states(shape, layout), _activations(shape, layout), _logits(shape, layout)
    if layout.device == "gpu":
        overhead = GPU_RUNTIME_BYTES + (GPU_HEAP - 1) * (sum(states.values()) + activations + logits)
    else:
        overhead = (CPU_HEAP - 1) * (_in_heap(shape, layout) + activations + logits)
    parts = {**states, "activations": activations, "logits": logits, "overhead": overhead}
    return Fit(**{name: round(part) for name, part in parts.items()})


def _states(shape: Shape, layout: Layout) -> dict[str, float]:
    p, n, stage = float(shape.parameters), layout.ranks, layout.zero_stage
    size = _weight_bytes(layout)
    share = n if stage >= 1 else 1
    # In fp32 stages 0 and 3 step the weights themselves.
    master = 0.0 if layout.precision == "fp32" and stage in (0, 3) else 4 * p / share
    moments = 8 * p / max(1, shape.hidden) if layout.adafactor else 8 * p / share
    gathered = size * min(p, MAX_LIVE)
    kept = size * p / (n if stage >= 2 else 1)
    # Stages 0 and 3 in fp32 step with the gradients that they keep.
    stepped = 0.0 if layout.precision == "fp32" and stage in (0, 3) else 4 * p / share
    return {
        "weights": size * p / n + gathered if stage == 3 else size * p,
        "gradients": kept + stepped,
        "optimizer": master + moments,
        "buffers": _buffers(shape, layout),
    }


def _weight_bytes(layout: Layout) -> int:
    return 2 if layout.precision == "bf16" else 4


def _buffers(shape: Shape, layout: Layout) -> float:
    """The bucket; of stage 3 also its copy in the order of the ranks, and the one that gloo makes of that."""
    touched = min(shape.parameters, REDUCE_BUCKET)
    bucket = _weight_bytes(layout) * (touched if layout.device == "cpu" else REDUCE_BUCKET)
    copies = 0 if layout.zero_stage < 3 else 2 if layout.device == "cpu" else 1
    return float(bucket + copies * _weight_bytes(layout) * touched)


def _in_heap(shape: Shape, layout: Layout) -> float:
    """Of the states what comes and goes in tensors of a layer's size: gradients, or what stage 3 gathers."""
    whole = float(_weight_bytes(layout) * shape.parameters)
    return whole / layout.ranks if layout.zero_stage == 2 else whole


def _activations(shape: Shape, layout: Layout) -> float:
    """Two norms (input, normed, output), query, key, value, what attention gives twice, four times the MLP's width."""
    inner = 2 * shape.query_width + 2 * shape.key_width + 4 * shape.intermediate
    # In bf16 a norm keeps its input in fp32.
    each = 18 * shape.hidden + 2 * inner if layout.precision == "bf16" else 4 * (7 * shape.hidden + inner)
    return float(layout.tokens * (shape.layers * each + 12 * shape.hidden))


def _logits(shape: Shape, layout: Layout) -> float:
    """Logits in fp32 (and bf16), and what their logsumexp needs; the head's gradient as kept and as handed on."""
    held = min(layout.tokens * shape.vocabulary, max(CHUNK_LOGITS[layout.device], shape.vocabulary))
    head = shape.vocabulary * shape.hidden
    return float(16 * held + (10 if layout.precision == "bf16" else 8) * head)


def flops_per_token(shape: Shape, length: int) -> float:
    """Of forward and backward: 6 a parameter, 12 a layer, hidden unit and position for attention.

    Source: Chowdhery et al., PaLM, arXiv 2204.02311, appendix B.
    """
    return 6.0 * shape.parameters + 12.0 * shape.layers * shape.hidden * length


def seconds(shape: Shape, *, tokens: int, length: int, peak_flops: float, mfu: float) -> float:
    """How long so many tokens take at a share of the peak of all devices together."""
    return tokens * flops_per_token(shape, length) / (peak_flops * mfu)
