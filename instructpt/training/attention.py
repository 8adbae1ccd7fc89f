"""Attention that stays inside a document: one interface, a kernel for each kind of device.

A model's attention is called with the layout of its batch. The kernels see the batch flattened, shape (tokens, heads,
head size), and bounds between which attention is causal; nothing looks across a bound. So a packed row computes what
its documents would compute one by one.

========  =====================================================================================================
name      kernel
========  =====================================================================================================
blocks    each segment by torch's scaled dot product attention: the blocks of a block-diagonal mask and nothing
          beside them, on any device
varlen    one call for all segments, FlashAttention as torch brings it (Dao, arXiv 2307.08691); GPU, 16 bit
mask      a dense block-diagonal mask over whole rows, for architectures that cannot be given an attention of
          their own; cost grows with the square of the row
========  =====================================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import torch
import torch.nn.functional as F  # noqa: N812  # the name everybody knows
from torch import Tensor, nn

from instructpt.errors import ConfigError

AttentionName = Literal["blocks", "varlen", "mask"]
REGISTERED = "instructpt"
_ARGUMENT = "document_layout"


class Kernel(Protocol):
    """Causal attention inside each segment.

    Args:
        query: Shape (tokens, heads, head size).
        key: Shape (tokens, key heads, head size); the heads are a multiple of the key heads.
        value: As ``key``.
        layout: Where segments are.
        scale: Of the products; None for one over the root of the head size.
        window: Tokens that a token looks back on, itself included; None for all.

    Returns:
        Shape (tokens, heads, head size).
    """

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float | None, window: int | None
    ) -> Tensor:
        """See above."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Segments of a flattened batch.

    Attributes:
        kernel: What computes it.
        sizes: Tokens of each segment.
        bounds: Shape (segments + 1,), int32, on the device of the batch: where segments begin, and the end.
    """

    kernel: Kernel
    sizes: Sequence[int]
    bounds: Tensor


def by_blocks(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float | None, window: int | None
) -> Tensor:
    """A :class:`Kernel` for any device: segment after segment."""
    parts = []
    split = (torch.split(x, list(layout.sizes)) for x in (query, key, value))
    for q, k, v in zip(*split, strict=True):
        size = q.shape[0]
        mask = None if window is None or size <= window else _band(size, window, q.device)
        out = F.scaled_dot_product_attention(
            q.transpose(0, 1)[None],
            k.transpose(0, 1)[None],
            v.transpose(0, 1)[None],
            attn_mask=mask,
            is_causal=mask is None,
            scale=scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        parts.append(out[0].transpose(0, 1))
    return torch.cat(parts)


def _band(size: int, window: int, device: torch.device) -> Tensor:
    back = torch.arange(size, device=device)[:, None] - torch.arange(size, device=device)[None, :]
    return (back >= 0) & (back < window)


def by_varlen(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float | None, window: int | None
) -> Tensor:
    """A :class:`Kernel` for GPUs from compute capability 8.0 on, in bf16 or fp16."""
    from torch.nn.attention.varlen import varlen_attn

    longest = max(layout.sizes)
    out = varlen_attn(
        query, key, value, layout.bounds, layout.bounds, longest, longest, scale=scale,
        window_size=(-1 if window is None else window - 1, 0), enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip
    return cast("Tensor", out)


KERNELS: dict[str, Kernel] = {"blocks": by_blocks, "varlen": by_varlen}


def choose(wanted: str, *, device: torch.device, bf16: bool, supported: bool) -> AttentionName:
    """The attention of a run.

    Args:
        wanted: ``auto`` or a name.
        device: Of the run.
        bf16: Whether activations have 16 bits.
        supported: Whether the architecture takes an attention of our own.

    Raises:
        ConfigError: ``wanted`` is impossible here.
    """
    if wanted == "mask" or (wanted == "auto" and not supported):
        return "mask"
    if not supported:
        raise ConfigError("the architecture cannot be given it", field="attention", value=wanted, fix="use auto")
    fast = device.type == "cuda" and bf16 and torch.cuda.get_device_capability(device)[0] >= 8
    if wanted == "varlen" and not fast:
        raise ConfigError(
            "needs bf16 and a GPU of compute capability 8.0 or more", field="attention", value=wanted, fix="use auto"
        )
    if wanted == "auto":
        return "varlen" if fast else "blocks"
    return cast("AttentionName", wanted)


def is_supported(model: nn.Module) -> bool:
    """Whether the architecture hands its attention over to transformers' interface."""
    return bool(getattr(model, "_supports_attention_backend", False))


def install(model: nn.Module) -> None:
    """Have the model call :func:`attend`; without a layout it goes on as before."""
    from transformers import AttentionInterface

    AttentionInterface.register(REGISTERED, attend)
    cast("Any", model).set_attn_implementation(REGISTERED)


def arguments(layout: Layout | None) -> dict[str, Any]:
    """What the decoder is called with beside its usual arguments."""
    return {} if layout is None else {_ARGUMENT: layout}


@torch.compiler.disable  # type: ignore[untyped-decorator]
def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **more: Any
) -> tuple[Tensor, None]:
    """Attention as transformers calls it.

    Args:
        module: The layer.
        query: Shape (rows, heads, length, head size).
        key: Shape (rows, key heads, length, head size).
        value: As ``key``.
        attention_mask: None where there is a layout.
        more: The layout, scale, window.

    Returns:
        Shape (rows, length, heads, head size), and no weights.

    Raises:
        ConfigError: The model wants something that the kernels cannot do.
    """
    layout: Layout | None = more.pop(_ARGUMENT, None)
    if layout is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return cast("tuple[Tensor, None]", sdpa_attention_forward(module, query, key, value, attention_mask, **more))
    for name in ("softcap", "s_aux"):
        if more.get(name) is not None:
            raise ConfigError(f"the model's attention has {name}", field="attention", fix="use attention: mask")
    rows, _, length, _ = query.shape
    q, k, v = (x.transpose(1, 2).reshape(rows * length, x.shape[1], x.shape[3]) for x in (query, key, value))
    out = layout.kernel(q, k, v, layout, more.get("scaling"), more.get("sliding_window"))
    return out.reshape(rows, length, out.shape[1], out.shape[2]), None


def document_mask(segments: Tensor) -> Tensor:
    """Who may see whom: shape (rows, 1, length, length), True inside a segment up to oneself.

    Padding is a segment of its own, so that no row of the mask is empty (its softmax would not be a number).
    """
    same = segments[:, :, None] == segments[:, None, :]
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    return (same & causal).unsqueeze(1)
