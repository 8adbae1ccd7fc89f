from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructpt.errors import ConfigError
from instructpt.synthesis import Pair, filters
from instructpt.synthesis.filters import FilterSettings

DEFAULT = FilterSettings()


def test_first_question_of_the_shard_wins():
    seen: set[str] = set()
    first = filters.apply([Pair("What?", "a"), Pair("Who?", "b")], seen, DEFAULT)
    second = filters.apply([Pair("WHAT? ", "c"), Pair("Why?", "d")], seen, DEFAULT)
    assert len(first.kept) == 2
    assert second.kept == (Pair("Why?", "d"),)
    assert second.dropped_by_reason == {filters.DUPLICATE_QUESTION: 1}


def test_questions_may_be_distinct_per_document_only():
    seen = {"what?"}
    result = filters.apply([Pair("What?", "a"), Pair("what?", "b")], seen, FilterSettings(deduplicate="document"))
    assert result.kept == (Pair("What?", "a"),)
    assert result.dropped_by_reason == {filters.DUPLICATE_QUESTION: 1}
    assert seen == {"what?"}


def test_deduplication_can_be_off():
    pairs = (Pair("What?", "a"), Pair("what?", "b"))
    assert filters.apply(pairs, set(), FilterSettings(deduplicate="none")).kept == pairs


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        (Pair(" ", "a"), filters.EMPTY),
        (Pair("q", "\n"), filters.EMPTY),
        (Pair("q", "aaa"), filters.QUESTION_TOO_SHORT),
        (Pair("q" * 9, "aaa"), filters.QUESTION_TOO_LONG),
        (Pair("qqq", "a"), filters.ANSWER_TOO_SHORT),
        (Pair("qqq", "a" * 9), filters.ANSWER_TOO_LONG),
        (Pair(" qqq ", " aa "), None),
        (Pair("q" * 8, "a" * 8), None),
    ],
)
def test_bounds(pair: Pair, reason: str | None):
    settings = FilterSettings(min_question_chars=2, max_question_chars=8, min_answer_chars=2, max_answer_chars=8)
    result = filters.apply([pair], set(), settings)
    assert result.dropped_by_reason == ({reason: 1} if reason else {})
    assert result.kept == (() if reason else (pair,))


def test_a_dropped_pair_does_not_claim_its_question():
    settings = FilterSettings(max_answer_chars=3)
    result = filters.apply([Pair("q", "too long"), Pair("q", "ok")], set(), settings)
    assert result.kept == (Pair("q", "ok"),)
    assert result.dropped_by_reason == {filters.ANSWER_TOO_LONG: 1}


@pytest.mark.parametrize("bounds", [{"min_question_chars": -1}, {"min_answer_chars": 5, "max_answer_chars": 4}])
def test_impossible_bounds(bounds: dict[str, int]):
    with pytest.raises(ConfigError, match="use 0 <= min <= max"):
        FilterSettings(**bounds)


def test_unknown_plug_in():
    with pytest.raises(ConfigError, match="unknown filter"):
        filters.apply([], set(), FilterSettings(extra=("no-such-filter",)))


@settings(deadline=None)
@given(st.lists(st.builds(Pair, st.text(max_size=4), st.text(max_size=4)), max_size=8), st.sets(st.text(max_size=2)))
def test_counts_add_up(pairs: list[Pair], seen: set[str]):
    result = filters.apply(pairs, seen, DEFAULT)
    assert len(result.kept) + sum(result.dropped_by_reason.values()) == len(pairs)
    questions = [pair.question.strip().lower() for pair in result.kept]
    assert len(set(questions)) == len(questions)


def test_groundedness():
    assert filters.is_grounded("New\nYork", "in new  york city")
    assert not filters.is_grounded("Boston", "in New York")
    assert not filters.is_grounded(" ", "in New York")
