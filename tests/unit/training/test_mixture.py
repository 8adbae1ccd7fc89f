from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructpt.errors import ConfigError
from instructpt.training.mixture import Mixture, SourceRows, positions_before, slots_of_rank


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
    with pytest.raises(ConfigError, match="'none' is empty: it has 0 tokens"):
        Mixture([rows("none", [])], tokens=10, batch_rows=2, seed=1)


def test_repeats_and_caps_are_exact_and_stand_in_the_receipt():
    made = [rows("raw", [97] * 40), rows("tuning", range(3, 20)), rows("capped", [50] * 9)]
    made[1] = replace(made[1], repeats=4)
    made[2] = replace(made[2], max_tokens=120)
    mix = Mixture(made, tokens=5000, batch_rows=8, seed=2)
    slots = [slot for step in range(mix.steps) for slot in mix.step(step)]
    given = [sum(s.tokens for s in slots if s.source == i) for i in range(3)]
    assert given == mix.quotas == [5000 - 748 - 120, 4 * 187, 120]
    seen = [s.row for s in slots if s.source == 1]
    assert all(seen.count(row) == 4 for row in range(17))
    receipt = {r.name: r.to_dict() for r in mix.receipt()}
    assert receipt["tuning"] | {"documents": 0} == {
        "name": "tuning", "weight": None, "repeats": 4, "max_tokens": None, "tokens": 748, "share": 0.1496, "rows": 68,
        "unique_rows": 17, "unique_documents": 17, "passes": 4.0, "tokens_available": 187, "documents": 0,
    }  # fmt: skip
    assert receipt["capped"]["max_tokens"] == 120
    assert sum(r["share"] for r in receipt.values()) == pytest.approx(1)


@given(sources=sources, seed=st.integers(0, 2**31 - 1), per_rank=st.integers(1, 2), data=st.data())
@settings(max_examples=60, deadline=None)
def test_the_order_is_the_same_for_any_world_size(sources, seed, per_rank, data):
    made = [rows(f"s{i}", t, w) for i, (t, w) in enumerate(sources)]
    tokens = sum(int(s.tokens.sum()) for s in made)
    try:
        mix = Mixture(made, tokens=tokens, batch_rows=8 * per_rank, seed=seed)
    except ConfigError:
        return
    step = data.draw(st.integers(0, mix.steps - 1))
    alone = slots_of_rank(mix.step(step), 0, 1)
    for world_size in (2, 4, 8):
        # Each rank builds its own mixture and jumps to the step, as after a restart.
        parts = [
            slots_of_rank(Mixture(made, tokens=tokens, batch_rows=8 * per_rank, seed=seed).step(step), r, world_size)
            for r in range(world_size)
        ]
        together = [parts[i % world_size][i // world_size] for i in range(len(alone))]
        assert together == list(alone)
        assert sum(len(part) for part in parts) == len(alone)


def test_a_late_step_is_reached_without_the_steps_before_it(monkeypatch):
    mix = Mixture([rows("a", [5] * 5000), rows("b", [7] * 3000, 2.0)], tokens=45_000, batch_rows=4, seed=5)
    calls = []
    slot = Mixture._slot
    monkeypatch.setattr(Mixture, "_slot", lambda self, *a: calls.append(a) or slot(self, *a))
    for step in (0, mix.steps // 2, mix.steps - 1):
        calls.clear()
        found = mix.step(step)
        assert len(calls) == len(found) <= 4
