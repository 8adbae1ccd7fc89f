from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructpt.training.packing import cut_starts, pack

lengths_lists = st.lists(st.integers(1, 40), min_size=0, max_size=80)


def naive_best_fit(lengths: list[int], row: int) -> list[int]:
    """Item by item, as in a textbook: free capacity left in each bin, sorted."""
    free: list[int] = []
    for length in sorted(lengths, reverse=True):
        fits = [i for i, f in enumerate(free) if f >= length]
        if fits:
            best = min(fits, key=lambda i: (free[i], i))
            free[best] -= length
        else:
            free.append(row - length)
    return sorted(free)


def first_fit(lengths: list[int], row: int) -> int:
    free: list[int] = []
    for length in lengths:
        for i, f in enumerate(free):
            if f >= length:
                free[i] -= length
                break
        else:
            free.append(row - length)
    return len(free)


@given(lengths=lengths_lists, row=st.integers(1, 24))
@settings(max_examples=200, deadline=None)
def test_every_token_once_and_short_items_whole(lengths, row):
    p = pack(np.array(lengths, dtype=np.int64), row, seed="s")
    seen = [set() for _ in lengths]
    for item, start, length in zip(p.items, p.starts, p.lengths, strict=True):
        tokens = set(range(int(start), int(start + length)))
        assert not tokens & seen[item]
        seen[item] |= tokens
    assert [len(s) for s in seen] == lengths
    assert p.cut_items == sum(n > row for n in lengths)
    pieces = np.bincount(p.items, minlength=len(lengths)) if lengths else []
    assert all(count == -(-n // row) for count, n in zip(pieces, lengths, strict=True))
    sums = np.add.reduceat(p.lengths, p.row_pieces[:-1]) if p.num_rows else np.zeros(0)
    assert (sums <= row).all()
    assert (np.diff(p.row_pieces) > 0).all()


@given(lengths=st.lists(st.integers(1, 24), max_size=80), row=st.integers(24, 48))
@settings(max_examples=200, deadline=None)
def test_same_fill_as_the_textbook_algorithm(lengths, row):
    p = pack(np.array(lengths, dtype=np.int64), row, seed="s")
    free = sorted(row - int(p.lengths[a:b].sum()) for a, b in zip(p.row_pieces, p.row_pieces[1:], strict=False))
    assert free == naive_best_fit(lengths, row)


@pytest.mark.parametrize("seed", range(8))
def test_at_least_as_full_as_first_fit(seed):
    rng = np.random.default_rng(seed)
    lengths = np.minimum(rng.lognormal(3.5, 0.9, 400).astype(np.int64) + 1, 128)
    assert pack(lengths, 128, seed="s").num_rows <= first_fit(lengths.tolist(), 128)


def test_rows_are_shuffled_by_the_seed_and_nothing_else():
    lengths = np.arange(1, 60, dtype=np.int64)
    a, b, c = pack(lengths, 64, seed="a"), pack(lengths, 64, seed="a"), pack(lengths, 64, seed="c")
    for field in ("items", "starts", "lengths", "row_pieces"):
        assert np.array_equal(getattr(a, field), getattr(b, field))
    assert a.num_rows == c.num_rows
    assert not np.array_equal(a.items, c.items)


def test_a_long_item_gives_full_rows_and_a_rest_that_is_packed():
    p = pack(np.array([25, 5]), 10, seed="s")
    assert p.num_rows == 3
    assert sorted(zip(p.items.tolist(), p.starts.tolist(), p.lengths.tolist(), strict=True)) == [
        (0, 0, 10), (0, 10, 10), (0, 20, 5), (1, 0, 5)
    ]  # fmt: skip


@pytest.mark.parametrize(("lengths", "row"), [([0], 4), ([3, -1], 4), ([1], 0)])
def test_impossible_lengths_are_refused(lengths, row):
    with pytest.raises(ValueError, match="at least 1"):
        pack(np.array(lengths), row, seed="s")


@given(items=st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=6), max_size=20), row=st.integers(1, 24))
@settings(max_examples=200, deadline=None)
def test_only_documents_longer_than_a_row_are_cut(items, row):
    lengths = np.array([sum(documents) for documents in items], dtype=np.int64)
    inner = {i: np.cumsum(documents)[:-1].tolist() for i, documents in enumerate(items) if len(documents) > 1}
    p = pack(lengths, row, seed="s", inner=inner)
    starts = [set() for _ in items]
    tokens = [0] * len(items)
    for item, start, length in zip(p.items.tolist(), p.starts.tolist(), p.lengths.tolist(), strict=True):
        assert 0 < length <= row
        starts[item].add(start)
        tokens[item] += length
    assert tokens == lengths.tolist()
    for item, documents in enumerate(items):
        if lengths[item] <= row:
            assert starts[item] == {0}
        ends = np.cumsum(documents).tolist()
        for begin, end in zip([0, *ends], ends, strict=False):
            inside = [at for at in starts[item] if begin < at < end]
            assert not inside or end - begin > row


def test_long_chains_hold_as_many_whole_documents_as_fit():
    assert cut_starts(25, 10, [4, 8, 16, 20]) == [0, 8, 16]
    assert cut_starts(25, 10, [12]) == [0, 10, 12, 22]
    assert cut_starts(25, 10, [22]) == [0, 10, 20]
    assert cut_starts(25, 10, [20]) == [0, 10, 20]
    assert cut_starts(10, 10, [5]) == [0]
