"""Rows -> the arrays of one forward pass. Pure numpy: what a model sees is decided here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instructpt.training.tokenshards import Row

PADDING = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One micro batch.

    Attributes:
        input_ids: Shape (rows, length).
        positions: Shape (rows, length): from 0 in each segment.
        segments: Shape (rows, length): number of the segment in its row, ``PADDING`` behind the last one.
        bounds: Shape (pieces + 1,): where segments and paddings begin in the flattened batch, and its end.
        predict_from: Shape (targets,): position in the flattened batch whose hidden state predicts a target.
        labels: Shape (targets,): the targets.
        tokens: Tokens that are not padding.
    """

    input_ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    segments: NDArray[np.int64]
    bounds: NDArray[np.int32]
    predict_from: NDArray[np.int64]
    labels: NDArray[np.int64]
    tokens: int


def make_batch(rows: Sequence[Row], length: int, pad: int) -> Batch:
    """A batch of rows, each padded to ``length``. No rows give one of padding alone, so that ranks stay in step."""
    count = max(1, len(rows))
    ids = np.full((count, length), pad, dtype=np.int64)
    positions = np.zeros((count, length), dtype=np.int64)
    segments = np.full((count, length), PADDING, dtype=np.int64)
    targets = np.zeros((count, length), dtype=bool)
    bounds: list[NDArray[np.int64]] = [] if rows else [np.zeros(1, dtype=np.int64)]
    for index, row in enumerate(rows):
        size = len(row.tokens)
        sizes = np.diff(row.segments)
        ids[index, :size] = row.tokens
        segments[index, :size] = np.repeat(np.arange(len(sizes)), sizes)
        positions[index, :size] = np.arange(size) - np.repeat(row.segments[:-1], sizes)
        targets[index, :size] = row.targets
        bounds.append(index * length + (row.segments[:-1] if size == length else row.segments))
    where = np.flatnonzero(targets)
    labels: Any = ids.reshape(-1)[where]
    return Batch(
        input_ids=ids,
        positions=positions,
        segments=segments,
        bounds=np.concatenate([*bounds, [count * length]]).astype(np.int32),
        predict_from=where - 1,
        labels=labels,
        tokens=sum(len(row.tokens) for row in rows),
    )


def micro_batches(rows: Sequence[Row], size: int, count: int, length: int, pad: int) -> list[Batch]:
    """The micro batches of one rank in one step: always ``count`` of at most ``size`` rows."""
    assert len(rows) <= size * count, f"{len(rows)} rows do not fit {count} micro batches of {size}"
    return [make_batch(rows[i * size : (i + 1) * size], length, pad) for i in range(count)]
