from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructpt.api.v1alpha1.filters import Filters
from instructpt.errors import ConfigError, SynthesisError
from instructpt.synthesis import Pair, filters
from instructpt.synthesis.filters import FilterSettings
from instructpt.synthesis.groundedness import content_words
from instructpt.synthesis.model import with_options

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


DOCUMENT = "The river Elbe rises in the Giant Mountains and flows through Dresden and Hamburg to the North Sea."


def reasons(pairs: list[Pair], document: str = DOCUMENT, **settings: Any) -> dict[str, int]:
    return dict(filters.apply(pairs, FilterSettings(**settings), document).dropped_by_reason)


def test_near_duplicates_of_a_question_are_dropped_and_the_first_wins():
    pairs = [
        Pair("Where does the river Elbe rise in the mountains?", "a"),
        Pair("Where does the river Elbe rise in the mountains then?", "b"),
        Pair("How long is it?", "c"),
    ]
    result = filters.apply(pairs, FilterSettings(question_similarity=0.8))
    assert result.kept == (pairs[0], pairs[2])
    assert result.dropped_by_reason == {filters.NEAR_DUPLICATE_QUESTION: 1}
    assert reasons(pairs, question_similarity=0.95) == {}
    assert reasons(pairs) == {}
    assert reasons(pairs, question_similarity=0.8, deduplicate="none") == {}


@pytest.mark.parametrize("field", ["question", "answer"])
def test_a_loop_is_dropped_where_a_bound_is_set(field: str):
    loop = "it is what it is and " * 6
    pair = Pair(**{"question": "What is it?", "answer": "A river.", field: loop})
    assert reasons([pair], max_repetition=0.3) == {filters.REPETITION: 1}
    assert reasons([pair]) == {}
    assert reasons([Pair("What is a river that flows north?", "A river that flows north")], max_repetition=0.0) == {}


def test_only_what_is_plainly_in_another_language_is_dropped():
    german = Pair("Wo ist die Quelle der Elbe und wie lang ist sie?", "Sie ist in dem Gebirge, und das ist hoch.")
    assert reasons([german], languages=("en", "fr")) == {filters.LANGUAGE: 1}
    assert reasons([german], languages=("de",)) == {}
    assert reasons([Pair("Elbe?", "Hamburg")], languages=("fr",)) == {}


@pytest.mark.parametrize(
    ("answer", "bound", "dropped"),
    [
        ("Hamburg", 1.0, False),
        ("It flows to the North Sea", 1.0, False),
        ("Paris", 0.1, True),
        ("Dresden, Paris", 0.5, False),
        ("Dresden, Paris", 0.51, True),
        ("Yes.", 1.0, False),
        ("It is.", 1.0, False),
        ("Paris", 0.0, False),
    ],
)
def test_groundedness_is_the_share_of_content_words_in_the_document(answer: str, bound: float, dropped: bool):
    expected = {filters.NOT_GROUNDED: 1} if dropped else {}
    assert reasons([Pair("q", answer)], min_groundedness=bound) == expected


def test_answers_out_of_options_need_no_ground():
    pair = Pair(with_options("Where?", ["Paris", "Rome"]), "Paris", "options")
    assert reasons([pair], min_groundedness=1.0, share_a_word=True) == {}


def test_one_shared_word_of_any_sort_is_enough_for_the_weaker_rule():
    assert reasons([Pair("q", "The Seine")], share_a_word=True) == {}
    assert reasons([Pair("q", "Seine")], share_a_word=True) == {filters.NOT_GROUNDED: 1}


def test_content_words():
    assert content_words("Yes, the Elbe and the Neisse, the ELBE!") == ["elbe", "neisse"]


def no_rivers(pair: Pair, document: str) -> bool:
    return "river" in document and "river" in pair.question


def talks(pair: Pair, document: str) -> Any:
    return "a reason"


def breaks(pair: Pair, document: str) -> bool:
    raise KeyError("score")


def plugged(monkeypatch: pytest.MonkeyPatch, *names: str) -> FilterSettings:
    points = [EntryPoint(name, f"{__name__}:{name}", filters.ENTRY_POINT_GROUP) for name in names]
    monkeypatch.setattr(filters.registry, "_discover", lambda group: points)
    monkeypatch.setattr(EntryPoint, "load", lambda point: globals()[point.name.replace("-", "_")])
    return FilterSettings.of(Filters(plugins=tuple(names)), "document")


def test_a_plugin_is_asked_last_and_counted_under_its_name(monkeypatch: pytest.MonkeyPatch):
    settings = plugged(monkeypatch, "no-rivers")
    pairs = [Pair("Which river?", "Elbe"), Pair("Which river?", ""), Pair("Which sea?", "North")]
    result = filters.apply(pairs, settings, DOCUMENT)
    assert result.kept == (pairs[2],)
    assert result.dropped_by_reason == {"plugin-no-rivers": 1, filters.EMPTY: 1}
    assert filters.apply(pairs[:1], settings, "no such thing").kept == (pairs[0],)


def test_a_plugin_that_neither_keeps_nor_drops_is_named(monkeypatch: pytest.MonkeyPatch):
    settings = plugged(monkeypatch, "talks")
    with pytest.raises(SynthesisError, match="the filter talks gave 'a reason'"):
        filters.apply([Pair("q", "a")], settings, "")


def test_a_plugin_that_raises_is_named(monkeypatch: pytest.MonkeyPatch):
    settings = plugged(monkeypatch, "breaks")
    with pytest.raises(SynthesisError, match="the filter breaks raised KeyError: 'score'"):
        filters.apply([Pair("q", "a")], settings, "")


def test_an_unknown_plugin_is_refused():
    with pytest.raises(ConfigError, match="unknown filter"):
        FilterSettings.of(Filters(plugins=("nowhere",)), "document")


def test_a_spec_without_filters_drops_what_it_did_before():
    assert FilterSettings.of(Filters(), "document") == FilterSettings(max_question_chars=2000, max_answer_chars=4000)


words = st.lists(
    st.sampled_from(["elbe", "sea", "north", "paris", "the", "is", "und", "der", "what"]), max_size=12
).map(" ".join)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.builds(Pair, words, words), max_size=10))
def test_with_everything_on_counts_add_up_and_a_second_pass_drops_nothing(pairs: list[Pair]):
    everything = FilterSettings(
        question_similarity=0.6, max_repetition=0.3, languages=("en",), share_a_word=True, min_groundedness=0.3
    )
    result = filters.apply(pairs, everything, DOCUMENT)
    assert result.num_pairs == len(pairs)
    again = filters.apply(result.kept, everything, DOCUMENT)
    assert again.kept == result.kept
    assert again.dropped_by_reason == {}
