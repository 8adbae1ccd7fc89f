"""The order of training: which packed row stands at (seed, step, slot), by arithmetic.

Each source gets a quota of tokens (:mod:`instructpt.api.quotas`: repeats, weights, caps); the quotas add up to the
budget exactly. A source is read in an order drawn by (seed, source, pass); where it is exhausted it is read again in
another order. The last row that a source gives is trimmed to its quota, so that the achieved mixture and the budget
are exact. Sources are interleaved evenly: row j of the k rows of a source stands at (2j + 1) / 2k of the run. The
order does not depend on the number of ranks: a rank takes every n-th row of a step. Resuming at a step costs the same
wherever it is.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instructpt.api.quotas import Share, share_tokens
from instructpt.training.permutation import permutation

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRows:
    """The packed rows of one source.

    Attributes:
        name: In receipts; decides the order together with the seed.
        weight: Share of the tokens, relative to the other sources; not read where ``repeats`` is set.
        max_repeats: Passes over it at most.
        tokens: Shape (rows,): non-padding tokens of each row.
        documents: Shape (rows,): documents that begin in each row.
        repeats: Passes over it, exactly so many; None shares by weight.
        max_tokens: Tokens of it at most.
    """

    name: str
    weight: float
    max_repeats: int
    tokens: Ints
    documents: Ints
    repeats: int | None = None
    max_tokens: int | None = None

    def share(self) -> Share:
        """What it is to give."""
        return Share(
            name=self.name, available=int(self.tokens.sum(dtype=np.int64)), weight=self.weight, repeats=self.repeats,
            max_tokens=self.max_tokens, max_repeats=self.max_repeats,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One row of one step.

    Attributes:
        source: Index of the source.
        row: Row in the source.
        tokens: Tokens of it that count; fewer than the row has only where it is trimmed to the budget.
    """

    source: int
    row: int
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceReceipt:
    """What a run takes from one source.

    Attributes:
        weight: As declared; None where ``repeats`` decides.
        repeats: As declared.
        max_tokens: As declared.
        tokens: Non-padding tokens, exactly.
        share: Of the tokens of the run.
        rows: Packed rows, repeated ones counted each time.
        unique_rows: Different ones.
        unique_documents: Documents that begin in them.
        passes: Over the source.
        tokens_available: Of one pass.
    """

    name: str
    weight: float | None
    repeats: int | None
    max_tokens: int | None
    tokens: int
    share: float
    rows: int
    unique_rows: int
    unique_documents: int
    passes: float
    tokens_available: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready data."""
        return {name: getattr(self, name) for name in self.__slots__}


class Mixture:
    """The order of one run.

    Args:
        sources: At least one, with different names.
        tokens: Non-padding tokens of the whole run.
        batch_rows: Rows of a step, over all ranks.
        seed: Of the order.

    Raises:
        ConfigError: A source is empty or has fewer tokens than its quota, even when read ``max_repeats`` times; or
            repeats and caps do not come to the budget.
    """

    def __init__(self, sources: Sequence[SourceRows], *, tokens: int, batch_rows: int, seed: int) -> None:
        self.sources = tuple(sources)
        self.tokens = tokens
        self.batch_rows = batch_rows
        self._seed = seed
        shares = [source.share() for source in self.sources]
        self._available = [share.available for share in shares]
        self.quotas = share_tokens(tokens, shares)
        self._orders: dict[int, tuple[int, Ints]] = {}
        self._plans = [self._plan(index) for index in range(len(self.sources))]
        self.rows = sum(self._plans)
        self.steps = -(-self.rows // batch_rows)

    def _plan(self, index: int) -> int:
        """Rows that a source gives."""
        passes, rest = divmod(self.quotas[index], self._available[index])
        rows = passes * len(self.sources[index].tokens)
        if rest:
            running = np.cumsum(self.sources[index].tokens[self._order(index, passes)], dtype=np.int64)
            rows += int(np.searchsorted(running, rest)) + 1
        return int(rows)

    def _order(self, index: int, number: int) -> Ints:
        """Rows of a source in the order of one pass; the last one asked for is kept."""
        kept = self._orders.get(index)
        if kept is None or kept[0] != number:
            source = self.sources[index]
            kept = (number, permutation(f"{self._seed}:{source.name}:{number}", len(source.tokens)))
            self._orders[index] = kept
        return kept[1]

    def step(self, step: int) -> list[Slot]:
        """The rows of a step in order; the last step may have fewer than ``batch_rows``."""
        first = step * self.batch_rows
        return self.slots(first, min(self.rows, first + self.batch_rows))

    def slots(self, first: int, end: int) -> list[Slot]:
        """The rows at positions ``first:end`` of the run."""
        taken = positions_before(first, self._plans)
        out: list[Slot] = []
        for source in _merge(taken, self._plans):
            if len(out) >= end - first:
                break
            out.append(self._slot(source, taken[source]))
            taken[source] += 1
        return out

    def _slot(self, index: int, ordinal: int) -> Slot:
        source = self.sources[index]
        number, at = divmod(ordinal, len(source.tokens))
        order = self._order(index, number)
        row = int(order[at])
        tokens = int(source.tokens[row])
        if ordinal == self._plans[index] - 1:
            before = number * self._available[index] + int(source.tokens[order[:at]].sum(dtype=np.int64))
            tokens = self.quotas[index] - before
        return Slot(source=index, row=row, tokens=tokens)

    def receipt(self) -> list[SourceReceipt]:
        """What the run takes from each source."""
        return [self._receipt(index) for index in range(len(self.sources))]

    def _receipt(self, index: int) -> SourceReceipt:
        source, rows = self.sources[index], self._plans[index]
        once = min(rows, len(source.tokens))
        used = source.documents if once == len(source.tokens) else source.documents[self._order(index, 0)[:once]]
        there = self._available[index]
        return SourceReceipt(
            name=source.name,
            weight=None if source.repeats is not None else source.weight,
            repeats=source.repeats,
            max_tokens=source.max_tokens,
            tokens=self.quotas[index],
            share=round(self.quotas[index] / self.tokens, 9),
            rows=rows,
            unique_rows=once,
            unique_documents=int(used.sum(dtype=np.int64)),
            passes=round(self.quotas[index] / there, 6),
            tokens_available=there,
        )


def slots_of_rank(slots: Sequence[Slot], rank: int, world_size: int) -> Sequence[Slot]:
    """The rows of a step that one rank computes: every ``world_size``-th, from the rank's own number on."""
    return slots[rank::world_size]


def positions_before(first: int, counts: Sequence[int]) -> list[int]:
    """How many rows of each source stand before position ``first`` of the interleaved run. O(sources)."""
    total = sum(counts)
    if total == 0:
        return [0] * len(counts)
    # Up to the share x of the run a source of k rows has given floor(kx + 1/2); with x = first / total that is right
    # within half a row a source, and a few steps of the merge make it exact.
    taken = [min(k, (2 * k * first + total) // (2 * total)) for k in counts]
    while sum(taken) > first:
        last = max((i for i in range(len(counts)) if taken[i]), key=lambda i: (_place(taken[i] - 1, counts[i]), i))
        taken[last] -= 1
    for source in _merge(taken, counts):
        if sum(taken) >= first:
            break
        taken[source] += 1
    return taken


def _place(ordinal: int, count: int) -> Fraction:
    return Fraction(2 * ordinal + 1, 2 * count)


def _merge(taken: Sequence[int], counts: Sequence[int]) -> Iterator[int]:
    """The source of each next position, from what is taken on."""
    heap = [(_place(t, k), i, t) for i, (t, k) in enumerate(zip(taken, counts, strict=True)) if t < k]
    heapq.heapify(heap)
    while heap:
        _, source, ordinal = heap[0]
        yield source
        if ordinal + 1 < counts[source]:
            heapq.heapreplace(heap, (_place(ordinal + 1, counts[source]), source, ordinal + 1))
        else:
            heapq.heappop(heap)
