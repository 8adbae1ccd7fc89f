"""Validation: the loss on rows that are not trained on, the same rows every time and for any number of ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from instructpt.training.batches import Batch, micro_batches
from instructpt.training.dataset import TokenSource
from instructpt.training.permutation import permutation


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """The rows of one validation.

    Attributes:
        source: Of the rows.
        rows: Their numbers in the source.
        tokens: Non-padding tokens of all of them.
        loss_tokens: Their targets.
    """

    source: TokenSource
    rows: tuple[int, ...]
    tokens: int
    loss_tokens: int

    def batches(self, rank: int, world_size: int, size: int, length: int, pad: int) -> Iterator[Batch]:
        """What one rank computes: as many batches on every rank, so that they stay in step.

        Args:
            rank: Of this process.
            world_size: Ranks.
            size: Rows of a batch at most.
            length: Tokens of a row.
            pad: Token of the padding.
        """
        count = math.ceil(math.ceil(len(self.rows) / world_size) / size)
        mine = self.rows[rank::world_size]
        for number in range(count):
            rows = [self.source.row(row) for row in mine[number * size : (number + 1) * size]]
            yield micro_batches(rows, size, 1, length, pad)[0]


def held_out(source: TokenSource, tokens: int) -> HeldOut:
    """Rows drawn from a source, whole, of together at most ``tokens`` tokens; one at least."""
    sizes = source.rows().tokens
    order = permutation("validation", len(sizes))
    fitting = int(np.searchsorted(np.cumsum(sizes[order]), tokens, side="right"))
    rows = order[: max(1, fitting)]
    return HeldOut(
        source=source,
        rows=tuple(int(row) for row in rows),
        tokens=int(sizes[rows].sum()),
        loss_tokens=int(source.row_loss[rows].sum()),
    )
