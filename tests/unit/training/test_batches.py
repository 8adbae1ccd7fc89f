from __future__ import annotations

import numpy as np

from instructpt.training.batches import PADDING, make_batch, micro_batches
from instructpt.training.tokenshards import Row


def row(tokens, segments, targets=None):
    tokens = np.array(tokens)
    mask = np.ones(len(tokens), dtype=bool) if targets is None else np.array(targets, dtype=bool)
    mask[segments[:-1]] = False
    return Row(tokens=tokens, segments=np.array(segments), targets=mask)


def test_positions_restart_and_labels_follow_their_predictor():
    batch = make_batch([row([7, 8, 9, 5, 6], [0, 3, 5]), row([4, 3], [0, 2])], 6, pad=2)
    assert batch.input_ids.tolist() == [[7, 8, 9, 5, 6, 2], [4, 3, 2, 2, 2, 2]]
    assert batch.positions[0].tolist() == [0, 1, 2, 0, 1, 0]
    assert batch.segments.tolist() == [[0, 0, 0, 1, 1, PADDING], [0, 0] + [PADDING] * 4]
    assert batch.predict_from.tolist() == [0, 1, 3, 6]
    assert batch.labels.tolist() == [8, 9, 6, 3]
    assert batch.tokens == 7


def test_masked_tokens_are_no_labels():
    batch = make_batch([row([1, 2, 3, 4], [0, 4], [0, 0, 1, 1])], 4, pad=0)
    assert (batch.predict_from.tolist(), batch.labels.tolist()) == ([1, 2], [3, 4])


def test_ranks_without_rows_still_get_their_batches():
    batches = micro_batches([row([1, 2], [0, 2])] * 3, 2, 3, 4, 0)
    assert [b.tokens for b in batches] == [4, 2, 0]
    assert batches[2].input_ids.shape == (1, 4)
    assert batches[2].labels.size == 0
