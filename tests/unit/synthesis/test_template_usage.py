"""How often the own patterns are used, and the counting of it."""

from __future__ import annotations

import pytest

from instructpt.synthesis import templates
from instructpt.synthesis.templates import usage
from instructpt.synthesis.templates.patterns import native


@pytest.fixture(scope="module")
def measured() -> usage.Usage:
    return usage.measure(templates.load())


def test_no_pattern_is_used_above_five_percent(measured: usage.Usage) -> None:
    assert measured.texts == 10_000
    assert measured.above() == []


def test_every_pattern_of_a_pair_or_a_document_is_used(measured: usage.Usage) -> None:
    ids = usage.ids_of(native())
    for category in ("free", "options", "cot", "options-cot", "openers", "joiners", "labels", "speakers"):
        assert set(ids[category]) <= set(measured.counts), category


def test_every_kind_of_pair_and_every_shape_is_measured(measured: usage.Usage) -> None:
    found = {category.name for category in usage.by_category(measured, usage.ids_of(native()))}
    # Separators are no patterns: they leave no id in a text.
    assert found == set(usage.ids_of(native())) - {"separators", "pair_separators"}
    assert set(usage.SHAPES) < set(measured.counts)


def test_counts_are_of_texts() -> None:
    found = usage.count([("classic", "free-1", "free-1"), ("classic", "free-2"), ("dialog", "cot-x-3")])
    assert found.texts == 3
    assert found.counts == {"classic": 2, "free-1": 1, "free-2": 1, "dialog": 1, "cot-x-3": 1}
    assert found.share("classic") == 2 / 3
    assert found.share("free-9") == 0.0
    assert usage.seen(found) == {"free": ["free-1", "free-2"], "cot-x": ["cot-x-3"]}
    assert found.above(0.3) == ["cot-x-3", "free-1", "free-2"]
    assert usage.count([]).share("classic") == 0.0


def test_usage_by_category() -> None:
    found = usage.count([("classic", "free-1"), ("classic", "free-1"), ("classic", "free-2"), ("classic",)])
    (free,) = usage.by_category(found, {"free": ["free-1", "free-2", "free-3"], "cot": ["cot-1"]})
    assert (free.name, free.number, free.most, free.most_share, free.least_share) == ("free", 3, "free-1", 0.5, 0.0)
