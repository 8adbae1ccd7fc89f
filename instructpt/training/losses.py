"""Cross-entropy of the targets, without ever holding the logits of all of them.

The head's product, the loss and its gradient are done for some targets at a time, all in the forward pass, because the
gradient of the logits is known as soon as the logits are: nothing is computed twice, and beside one piece of logits
only the gradients of the hidden states and of the head's weights stay until the backward pass.

Source: the fused linear cross-entropy of Hsu et al., Liger Kernel, arXiv 2410.10989, section 3.2.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812  # the name everybody knows
from torch import Tensor, nn

CHUNK_LOGITS = {"cpu": 1 << 23, "cuda": 1 << 27}
"""Logits held at once: 32 MiB on a CPU, where they should stay in its caches, and 512 MiB on a GPU."""


def rows_at_once(vocab_size: int, device: torch.device) -> int:
    """Targets whose logits are held at once."""
    return max(1, CHUNK_LOGITS.get(device.type, 1 << 25) // vocab_size)


def whole(hidden: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same sum from all logits at once: what the pieces are compared with."""
    return F.cross_entropy(F.linear(hidden, weight, bias).float(), labels, reduction="sum")


def chunked(hidden: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Sum of the losses of the targets, in nats, as one fp32 number.

    Args:
        hidden: Shape (targets, hidden).
        labels: Shape (targets,).
        weight: Of the head, shape (vocabulary, hidden).
        bias: Of the head, shape (vocabulary,).
    """
    rows = rows_at_once(weight.shape[0], weight.device)
    apply: Any = _Chunked.apply
    return cast("Tensor", apply(hidden, labels, weight, bias, rows))


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None, rows: int) -> Tensor:
        wanted, wanted_weight = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
        wanted_bias = bias is not None and ctx.needs_input_grad[3]
        grad_hidden = torch.empty_like(hidden) if wanted else None
        # In fp32 whatever the weights have: pieces are added up, and their roundings would be, too.
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if wanted_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if wanted_bias and bias is not None else None
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        for first in range(0, len(labels), rows):
            h, t = hidden[first : first + rows], labels[first : first + rows]
            logits = F.linear(h, weight, bias).float()
            norm = torch.logsumexp(logits, dim=1)
            total += (norm - logits.gather(1, t[:, None])[:, 0]).sum(dtype=torch.float64)
            if not (wanted or wanted_weight):
                continue
            grad = logits.sub_(norm[:, None]).exp_()
            grad.scatter_add_(1, t[:, None], grad.new_full((len(t), 1), -1.0))
            if grad_bias is not None:
                grad_bias += grad.sum(0)
            grad = grad.to(weight.dtype)
            if grad_hidden is not None:
                torch.mm(grad, weight, out=grad_hidden[first : first + rows])
            if grad_weight is not None:
                if weight.dtype == torch.float32:
                    grad_weight.addmm_(grad.t(), h)
                else:
                    grad_weight += grad.t() @ h
        kept = (grad_hidden, grad_weight, grad_bias)
        ctx.places = [g is not None for g in kept]
        ctx.dtype = weight.dtype
        ctx.save_for_backward(*[g for g in kept if g is not None])
        return total.float()

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> tuple[Tensor | None, ...]:
        (scale,) = outer
        kept = iter(ctx.saved_tensors)
        hidden, weight, bias = (next(kept) * scale if there else None for there in ctx.places)
        if hidden is not None:
            hidden = hidden.to(ctx.dtype)
        return hidden, None, _as(weight, ctx.dtype), _as(bias, ctx.dtype), None


def _as(grad: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if grad is None else grad.to(dtype)


def install(head: nn.Module) -> bool:
    """Have a linear head give the loss when it is called with labels as well; whether it is one.

    Called as a module, not as a function of its weight: ZeRO gathers a sharded weight around a module's call.
    """
    if not isinstance(head, nn.Linear):
        return False

    def forward(hidden: Tensor, labels: Tensor | None = None) -> Tensor:
        if labels is None:
            return F.linear(hidden, head.weight, head.bias)
        return chunked(hidden, labels, head.weight, head.bias)

    cast("Any", head).forward = forward
    return True
