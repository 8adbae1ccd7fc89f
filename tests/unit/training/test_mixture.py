from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructpt.errors import ConfigError
from instructpt.training.mixture import Mixture, SourceRows, positions_before, split_tokens


def rows(name, tokens, weight=1.0, max_repeats=50):
    tokens = np.array(tokens, dtype=np.int64)
    return SourceRows(
        name=name, weight=weight, max_repeats=max_repeats, tokens=tokens, documents=np.ones(len(tokens), dtype=np.int64)
    )


sources = st.lists(
    st.tuples(st.lists(st.integers(1, 30), min_size=1, max_size=20), st.floats(0.1, 5)), min_size=1, max_size=4
)


@given(sources=sources, share=st.floats(0.05, 3), batch=st.integers(1, 7), seed=st.integers(0, 9))
@settings(max_examples=150, deadline=None)
def test_budget_and_ratio_are_exact(sources, share, batch, seed):
    made = [rows(f"s{i}", t, w) for i, (t, w) in enumerate(sources)]
    tokens = max(1, int(share * sum(int(s.tokens.sum()) for s in made)))
    try:
        mix = Mixture(made, tokens=tokens, batch_rows=batch, seed=seed)
    except ConfigError:
        return  # a small source with a large weight
    slots = [slot for step in range(mix.steps) for slot in mix.step(step)]
    assert len(slots) == mix.rows
    assert sum(s.tokens for s in slots) == tokens
    for i, quota in enumerate(mix.quotas):
        assert sum(s.tokens for s in slots if s.source == i) == quota
    assert all(0 < s.tokens <= made[s.source].tokens[s.row] for s in slots)
    trimmed = [s for s in slots if s.tokens < made[s.source].tokens[s.row]]
    assert len(trimmed) <= len(made)
    assert [s.tokens for s in mix.receipt()] == mix.quotas


@given(counts=st.lists(st.integers(0, 12), min_size=1, max_size=5), data=st.data())
@settings(max_examples=200, deadline=None)
def test_any_position_is_found_without_walking_there(counts, data):
    places = sorted((Fraction(2 * j + 1, 2 * k), i) for i, k in enumerate(counts) for j in range(k))
    first = data.draw(st.integers(0, len(places)))
    assert positions_before(first, counts) == [sum(1 for _, i in places[:first] if i == s) for s in range(len(counts))]


def test_a_step_is_the_same_however_it_is_reached():
    made = [rows("a", range(1, 40)), rows("b", [7] * 13, 2.0)]
    mix = Mixture(made, tokens=900, batch_rows=4, seed=3)
    walked = [mix.step(s) for s in range(mix.steps)]
    fresh = Mixture(made, tokens=900, batch_rows=4, seed=3)
    assert [fresh.step(s) for s in reversed(range(mix.steps))] == walked[::-1]
    # The order of rows does not depend on how many make a step.
    other = Mixture(made, tokens=900, batch_rows=6, seed=3)
    assert [s for step in range(other.steps) for s in other.step(step)] == [s for step in walked for s in step]


def test_each_pass_is_complete_and_in_another_order():
    mix = Mixture([rows("a", [10] * 30)], tokens=600, batch_rows=30, seed=1)
    first, second = ([s.row for s in mix.step(i)] for i in range(2))
    assert sorted(first) == sorted(second) == list(range(30))
    assert first != second
    receipt = mix.receipt()[0]
    assert (receipt.unique_rows, receipt.unique_documents, receipt.passes) == (30, 30, 2.0)


def test_seed_changes_the_order():
    orders = {
        tuple(s.row for s in Mixture([rows("a", [5] * 40)], tokens=200, batch_rows=40, seed=i).step(0))
        for i in range(5)
    }
    assert len(orders) == 5


def test_sources_are_interleaved_evenly():
    mix = Mixture([rows("a", [10] * 300), rows("b", [10] * 300, 3.0)], tokens=2000, batch_rows=20, seed=1)
    for step in range(mix.steps):
        assert abs(sum(s.source == 1 for s in mix.step(step)) - 15) <= 1


def test_exhausted_source_is_refused_with_the_numbers():
    made = [rows("small", [10] * 10, max_repeats=4), rows("large", [10] * 1000)]
    with pytest.raises(ConfigError) as error:
        Mixture(made, tokens=1000, batch_rows=4, seed=1)
    text = str(error.value)
    assert "'small'" in text
    assert "500 tokens" in text
    assert "has 100 and may be read 4 times" in text
    assert "lower tokens to 800" in text
    assert "maxRepeats to 5" in text
    Mixture(made, tokens=800, batch_rows=4, seed=1)


def test_empty_source_is_refused():
    with pytest.raises(ConfigError, match="has 0"):
        Mixture([rows("none", [])], tokens=10, batch_rows=2, seed=1)


def test_split_tokens_adds_up():
    assert split_tokens(10, [1, 1, 1]) == [4, 3, 3]
    assert split_tokens(1_000_000_007, [0.7, 0.3]) == [700000005, 300000002]
