"""Best-fit-decreasing packing of items into rows, a run of equal lengths at a time.

An item shorter than a row is never cut; a longer one is cut where one of its documents begins, and inside a document
only where that alone is longer than a row. The result is that of the textbook algorithm (take items from longest to
shortest, put each into the fullest row that still has room), but the cost depends on the row length, not on the number
of items: one integer is a bitmask of the free capacities there are, its lowest set bit at or above a length is the best
fit, and a whole run of equal items moves at once.

Source: Ding et al., Fewer Truncations Improve Language Modeling (best-fit packing), ICML 2024.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from instructpt.training.permutation import permutation

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """Where every token of every item goes: pieces in the order of the rows.

    Attributes:
        items: Shape (pieces,): the item that a piece is of.
        starts: Shape (pieces,): first token of the piece in its item.
        lengths: Shape (pieces,): tokens of the piece; at least 1.
        row_pieces: Shape (rows + 1,): row r holds the pieces ``row_pieces[r]:row_pieces[r + 1]``.
        cut_items: Items longer than a row.
    """

    items: Ints
    starts: Ints
    lengths: Ints
    row_pieces: Ints
    cut_items: int

    @property
    def num_rows(self) -> int:
        """Rows."""
        return len(self.row_pieces) - 1


def pack(lengths: Ints, row_length: int, *, seed: str, inner: Mapping[int, Sequence[int]] | None = None) -> Packing:
    """Pack items into rows.

    Args:
        lengths: Shape (items,): tokens of each item, at least 1.
        row_length: Tokens of a row.
        seed: Rows are shuffled by it afterwards; the algorithm leaves them sorted by their longest piece.
        inner: Of items of several documents: the tokens at which the second and later ones begin, ascending. An item
            longer than a row is cut there where that is possible; one without entry is cut into full rows and a rest.

    Returns:
        The packing. Inside a row pieces stand in the order of their items.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if row_length < 1 or (len(lengths) and int(lengths.min()) < 1):
        raise ValueError("row_length and all lengths must be at least 1")
    cut_items = int(np.count_nonzero(lengths > row_length))
    items, starts, pieces = _cut(lengths, row_length, inner or {}) if cut_items else (None, None, lengths)
    if len(pieces) >= 1 << 31:
        raise ValueError("pack at most 2^31 pieces at a time")
    order, bins, num_bins = _best_fit(pieces, row_length)
    shuffled = np.empty(num_bins, dtype=np.int32)
    shuffled[permutation(f"rows:{seed}", num_bins)] = np.arange(num_bins, dtype=np.int32)
    rows = shuffled[bins]
    # Row and piece in one number: sorting numbers is many times as fast as sorting places by them.
    by_row = (rows.astype(np.int64) << 32) | order
    by_row.sort()
    by_row &= (1 << 32) - 1
    row_pieces = np.zeros(num_bins + 1, dtype=np.int64)
    np.cumsum(np.bincount(rows, minlength=num_bins), out=row_pieces[1:])
    return Packing(
        items=by_row if items is None else items[by_row],
        starts=np.zeros(len(pieces), dtype=np.int64) if starts is None else starts[by_row],
        lengths=pieces[by_row],
        row_pieces=row_pieces,
        cut_items=cut_items,
    )


def cut_starts(length: int, row_length: int, inner: Sequence[int]) -> list[int]:
    """First tokens of the pieces of one item: each as many whole documents as fit, a row of one that fits in none.

    A document of at most ``row_length`` tokens is never cut: a piece begins at a document, or inside a longer one, so
    that the next document's beginning is within reach before any shorter one could be.
    """
    starts = [0]
    while length - starts[-1] > row_length:
        last = bisect_right(inner, starts[-1] + row_length) - 1
        found = inner[last] if last >= 0 else 0
        starts.append(found if found > starts[-1] else starts[-1] + row_length)
    return starts


def _cut(lengths: Ints, row_length: int, inner: Mapping[int, Sequence[int]]) -> tuple[Ints, Ints, Ints]:
    """Pieces of at most a row: item, start and length of each."""
    bounded = {i: cut_starts(int(lengths[i]), row_length, at) for i, at in inner.items() if lengths[i] > row_length}
    counts = -(-lengths // row_length)
    for item, found in bounded.items():
        counts[item] = len(found)
    items = np.repeat(np.arange(len(lengths), dtype=np.int64), counts)
    first = np.cumsum(counts) - counts
    starts = (np.arange(len(items), dtype=np.int64) - first[items]) * row_length
    for item, found in bounded.items():
        starts[first[item] : first[item] + len(found)] = found
    ends = np.append(starts[1:], 0)
    last = first + counts - 1
    ends[last] = lengths
    return items, starts, ends - starts


def _best_fit(pieces: Ints, row_length: int) -> tuple[Ints, NDArray[np.int32], int]:
    """Pieces from longest to shortest, the bin of each in that order, and the number of bins."""
    # 16-bit keys are sorted by counting, in linear time.
    keys = row_length - pieces
    order = np.argsort(keys.astype(np.uint16) if row_length < 1 << 16 else keys, kind="stable")
    counts = np.bincount(pieces, minlength=row_length + 1)
    free = _Free(row_length)
    taken = [np.zeros(0, dtype=np.int32)]
    for length in np.flatnonzero(counts)[::-1].tolist():
        left = int(counts[length])
        while left:
            taken.append(free.take(length, left))
            left -= len(taken[-1])
    return order, np.concatenate(taken), free.num_bins


class _Free:
    """Bins by free capacity: a queue of runs of bins for each, and the bitmask of capacities that have one."""

    def __init__(self, row_length: int) -> None:
        self.num_bins = 0
        self._row_length = row_length
        self._runs: list[deque[NDArray[np.int32]]] = [deque() for _ in range(row_length + 1)]
        self._mask = 0

    def take(self, length: int, count: int) -> NDArray[np.int32]:
        """Bins for the next of ``count`` pieces of one length, one entry a piece; at least one, at most ``count``."""
        above = self._mask >> length
        if above:
            capacity = length + (above & -above).bit_length() - 1
            run = self._runs[capacity].popleft()
        else:
            capacity = self._row_length
            needed = -(-count // (capacity // length))
            run = np.arange(self.num_bins, self.num_bins + needed, dtype=np.int32)
            self.num_bins += needed
        # Having taken a piece, a bin is the best fit for the next one as long as it has room: fill it at once.
        each = capacity // length
        full = min(len(run), count // each)
        rest = count - full * each if full < len(run) else 0
        used = full + (1 if rest else 0)
        self._put(capacity, run[used:], front=True)
        self._put(capacity - each * length, run[:full])
        if rest:
            self._put(capacity - rest * length, run[full:used])
        if not self._runs[capacity]:
            self._mask &= ~(1 << capacity)
        if each == 1:
            return run[:full]
        return np.concatenate((np.repeat(run[:full], each), np.repeat(run[full:used], rest)))

    def _put(self, capacity: int, run: NDArray[np.int32], *, front: bool = False) -> None:
        if len(run) == 0 or capacity == 0:
            return
        if front:
            self._runs[capacity].appendleft(run)
        else:
            self._runs[capacity].append(run)
        self._mask |= 1 << capacity
