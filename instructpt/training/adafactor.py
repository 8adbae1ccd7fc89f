"""Adafactor whose parameters may lie in pieces on several ranks, as ZeRO cuts them.

DeepSpeed gives an optimizer flat tensors cut anywhere, and an optimizer that looks at a matrix by rows and columns
would see neither. Here it is told which part of which parameter a flat tensor holds; sums over rows, columns and whole
parameters are added up over the ranks. So the update is that of the whole matrices, whatever the stage and world size.

Without momentum, with update clipping at 1, second moments that decay by 1 - t^-0.8 and steps relative to the size of
the parameter; the rate is the schedule's. Source: Shazeer and Stern, arXiv 1804.04235, algorithms 4 and 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from instructpt.training.pieces import Piece

MOMENTS = ("row", "column", "square")
_EPSILON = 1.19e-7  # of fp32, floor of a root mean square
_SMALLEST = 1e-3  # floor of a parameter's size
_DECAY = -0.8
_CLIP = 1.0


class Adafactor(torch.optim.Optimizer):
    """See the module.

    Args:
        groups: ``params`` with their ``weight_decay``.
        lr: Learning rate; the loop sets it at every step.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float) -> None:
        super().__init__(list(groups), {"lr": lr, "weight_decay": 0.0})
        self._pieces: dict[int, Sequence[Piece]] = {}
        self._sum: Callable[[Tensor], Tensor] | None = None
        self._moments: dict[str, dict[str, Tensor]] = {}
        self._steps: dict[int, int] = {}

    def place(
        self,
        pieces: Mapping[int, Sequence[Piece]],
        shapes: Mapping[str, tuple[int, ...]],
        total: Callable[[Tensor], Tensor] | None,
        device: torch.device,
        *,
        steps: int = 0,
    ) -> None:
        """Say what the flat tensors hold, and begin with moments of zero.

        Args:
            pieces: By ``id`` of the flat tensor, of the same parameters on all ranks: one of which a rank holds nothing
                has a piece of size 0. Before this is called a step does nothing.
            shapes: Of all parameters, in the same order on all ranks.
            total: Adds a tensor up over the ranks, in place; None where each rank holds everything.
            device: Of the moments.
            steps: Steps done before.
        """
        self._pieces, self._sum = dict(pieces), total
        self._steps = dict.fromkeys(self._pieces, steps)
        self._moments = {}
        for name, shape in shapes.items():
            if len(shape) >= 2:
                lead = math.prod(shape[:-2])
                self._moments[name] = {
                    "row": torch.zeros(math.prod(shape[:-1]), device=device),
                    "column": torch.zeros(lead, shape[-1], device=device),
                }
            else:
                self._moments[name] = {"square": torch.zeros(math.prod(shape), device=device)}

    def held(self) -> list[tuple[Tensor, tuple[Piece, ...], bool]]:
        """The second moments: each tensor, what of it this rank holds, and whether every rank holds the same.

        Sums over rows and columns are parameters ``row/<name>`` and ``column/<name>`` of their own.
        """
        parts: dict[str, list[Piece]] = {}
        for piece in (p for pieces in self._pieces.values() for p in pieces):
            parts.setdefault(piece.name, []).append(piece)
        out = []
        for name, kept in self._moments.items():
            for key, value in kept.items():
                held = f"{key}/{name}"
                whole = Piece(name=held, shape=tuple(value.shape), start=0, offset=0, size=value.numel())
                mine = [replace(p, name=held, offset=p.start) for p in parts.get(name, [])]
                out.append((value, tuple(mine) if key == "square" else (whole,), key != "square"))
        return out

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of the groups' tensors; all ranks together."""
        for group in self.param_groups:
            for flat in group["params"]:
                if id(flat) in self._pieces and flat.grad is not None:
                    self._steps[id(flat)] += 1
                    self._update(flat, flat.grad, self._pieces[id(flat)], self._steps[id(flat)], group)

    def _update(self, flat: Tensor, grad: Tensor, pieces: Sequence[Piece], step: int, group: dict[str, Any]) -> None:
        fresh = step**_DECAY
        data = [flat.view(-1)[p.offset : p.offset + p.size] for p in pieces]
        grads = [grad.view(-1)[p.offset : p.offset + p.size].float() for p in pieces]
        names = list(dict.fromkeys(p.name for p in pieces))
        self._second_moments(names, pieces, grads, fresh)
        updates = [self._direction(p, g) for p, g in zip(pieces, grads, strict=True)]
        sums = torch.zeros(len(names), 2, dtype=torch.float64, device=flat.device)
        index = {name: i for i, name in enumerate(names)}
        for piece, update, values in zip(pieces, updates, data, strict=True):
            sums[index[piece.name], 0] += update.square().sum(dtype=torch.float64)
            sums[index[piece.name], 1] += values.float().square().sum(dtype=torch.float64)
        if self._sum is not None:
            sums = self._sum(sums)
        for piece, update, values in zip(pieces, updates, data, strict=True):
            count = math.prod(piece.shape)
            update_size, size = (float(s / count) ** 0.5 for s in sums[index[piece.name]])
            rate = group["lr"] * max(_SMALLEST, size) / max(1.0, update_size / _CLIP)
            if group["weight_decay"]:
                values.mul_(1.0 - group["lr"] * group["weight_decay"])
            values.add_(update.to(values.dtype), alpha=-rate)

    def _second_moments(self, names: list[str], pieces: Sequence[Piece], grads: Sequence[Tensor], fresh: float) -> None:
        means = {n: {k: torch.zeros_like(v) for k, v in self._moments[n].items() if k != "square"} for n in names}
        for piece, grad in zip(pieces, grads, strict=True):
            squares = grad.square()
            if len(piece.shape) < 2:
                kept = self._moments[piece.name]["square"][piece.start : piece.start + piece.size]
                kept.lerp_(squares, fresh)
            elif piece.size:
                first, lines = _lines(piece, squares)
                means[piece.name]["row"][first : first + len(lines)] += lines.sum(1) / piece.shape[-1]
                means[piece.name]["column"].index_add_(0, _matrix_of(piece, first, lines), lines / piece.shape[-2])
        matrices = [v for n in names for v in means[n].values()]
        if self._sum is not None and matrices:
            joined = self._sum(torch.cat([m.reshape(-1) for m in matrices]))
            for m, part in zip(matrices, torch.split(joined, [m.numel() for m in matrices]), strict=True):
                m.copy_(part.view_as(m))
        for name in names:
            for key, mean in means[name].items():
                self._moments[name][key].lerp_(mean, fresh)

    def _direction(self, piece: Piece, grad: Tensor) -> Tensor:
        """The gradient over the root of its second moment."""
        kept = self._moments[piece.name]
        if len(piece.shape) < 2:
            estimate = kept["square"][piece.start : piece.start + piece.size].clone()
        elif not piece.size:
            return grad
        else:
            first, lines = _lines(piece, grad)
            matrix = _matrix_of(piece, first, lines)
            mean = kept["row"].view(-1, piece.shape[-2]).mean(1).clamp_(min=_EPSILON)
            row = kept["row"][first : first + len(lines)]
            whole = (row / mean[matrix])[:, None] * kept["column"][matrix]
            at = piece.start - first * piece.shape[-1]
            estimate = whole.reshape(-1)[at : at + piece.size]
        return estimate.clamp(min=_EPSILON**2).rsqrt_().mul_(grad)


def _lines(piece: Piece, values: Tensor) -> tuple[int, Tensor]:
    """The rows that a piece touches, filled up with zeros: the first one's number, and shape (rows, columns)."""
    columns = piece.shape[-1]
    first = piece.start // columns
    last = -(-(piece.start + piece.size) // columns)
    at = piece.start - first * columns
    if at == 0 and piece.size == (last - first) * columns:
        return first, values.view(-1, columns)
    out = values.new_zeros((last - first) * columns)
    out[at : at + piece.size] = values
    return first, out.view(-1, columns)


def _matrix_of(piece: Piece, first: int, lines: Tensor) -> Tensor:
    """Number of the matrix of each row: a parameter of three dimensions holds several."""
    return torch.arange(first, first + len(lines), device=lines.device) // piece.shape[-2]
