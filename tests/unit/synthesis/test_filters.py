from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructpt.errors import ConfigError
from instructpt.synthesis import Pair, filters
from instructpt.synthesis.filters import FilterSettings

DEFAULT = FilterSettings()


def test_the_first_of_equal_questions_of_a_document_wins():
    pairs = [Pair("What?", "a"), Pair("WHAT? ", "c"), Pair("Who?", "b")]
    result = filters.apply(pairs, DEFAULT)
    assert result.kept == (Pair("What?", "a"), Pair("Who?", "b"))
    assert result.dropped_by_reason == {filters.DUPLICATE_QUESTION: 1}
    assert filters.apply(pairs[:1], DEFAULT).kept == (Pair("What?", "a"),), "another document may be asked the same"


def test_deduplication_can_be_off():
    pairs = (Pair("What?", "a"), Pair("what?", "b"))
    assert filters.apply(pairs, FilterSettings(deduplicate="none")).kept == pairs


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
    result = filters.apply([pair], settings)
    assert result.dropped_by_reason == ({reason: 1} if reason else {})
    assert result.kept == (() if reason else (pair,))


def test_a_dropped_pair_does_not_claim_its_question():
    settings = FilterSettings(max_answer_chars=3)
    result = filters.apply([Pair("q", "too long"), Pair("q", "ok")], settings)
    assert result.kept == (Pair("q", "ok"),)
    assert result.dropped_by_reason == {filters.ANSWER_TOO_LONG: 1}


@pytest.mark.parametrize("bounds", [{"min_question_chars": -1}, {"min_answer_chars": 5, "max_answer_chars": 4}])
def test_impossible_bounds(bounds: dict[str, int]):
    with pytest.raises(ConfigError, match="use 0 <= min <= max"):
        FilterSettings(**bounds)


@settings(deadline=None)
@given(st.lists(st.builds(Pair, st.text(max_size=4), st.text(max_size=4)), max_size=8))
def test_counts_add_up(pairs: list[Pair]):
    result = filters.apply(pairs, DEFAULT)
    assert len(result.kept) + sum(result.dropped_by_reason.values()) == len(pairs)
    questions = [pair.question.strip().lower() for pair in result.kept]
    assert len(set(questions)) == len(questions)
