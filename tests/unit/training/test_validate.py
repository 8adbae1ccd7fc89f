from __future__ import annotations

import numpy as np
import pytest

from instructpt.training.mixture import SourceRows
from instructpt.training.tokenshards import Row
from instructpt.training.validate import held_out


class Source:
    """Rows of 3, 4, 5 ... tokens; the tokens of a row are its number."""

    def __init__(self, count: int) -> None:
        self.sizes = np.arange(3, 3 + count)
        self.row_loss = self.sizes - 1

    def rows(self) -> SourceRows:
        return SourceRows(name="v", weight=1.0, max_repeats=1, tokens=self.sizes, documents=np.ones_like(self.sizes))

    def row(self, index: int) -> Row:
        size = int(self.sizes[index])
        return Row(tokens=np.full(size, index), segments=np.array([0, size]), targets=np.arange(size) > 0)


@pytest.mark.parametrize(("tokens", "rows"), [(1, 1), (40, None), (10**6, 20)])
def test_whole_rows_up_to_the_tokens_and_one_at_least(tokens, rows):
    found = held_out(Source(20), tokens)
    assert len(set(found.rows)) == len(found.rows)
    assert rows is None or len(found.rows) == rows
    assert found.tokens <= tokens or len(found.rows) == 1
    assert found.loss_tokens == found.tokens - len(found.rows)
    assert held_out(Source(20), tokens).rows == found.rows


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("size", [1, 4])
def test_every_row_is_seen_once_by_any_number_of_ranks_in_step(world_size, size):
    found = held_out(Source(13), 10**6)
    each = [list(found.batches(rank, world_size, size, 16, 0)) for rank in range(world_size)]
    assert len({len(batches) for batches in each}) == 1
    assert sum(len(b.labels) for batches in each for b in batches) == found.loss_tokens
    seen = [int(b.input_ids[r, 0]) for bs in each for b in bs for r in range(len(b.input_ids)) if b.segments[r, 0] == 0]
    assert sorted(seen) == sorted(found.rows)
