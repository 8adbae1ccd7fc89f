from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructpt.corpus.document import Document
from instructpt.evaluation.tasks import (
    Question,
    build_questions,
    chance,
    choose_documents,
    exact_match,
    excerpt,
    excerpt_characters,
    majority_answers,
    normalize,
    render_prompt,
)


@dataclass(frozen=True)
class Pair:
    question: str
    answer: str


def miner(text: str, seed: int, most: int) -> list[Pair]:
    """Three questions a document: its first word, whether it is a text, and its last word among options."""
    words = text.split()
    return [
        Pair("What comes first?", words[0]),
        Pair("Is it a text?", "Yes"),
        Pair(f"What ends it?\nOptions:\n- {words[-1]}\n- nothing", words[-1]),
    ][:most]


def documents(number: int) -> list[Document]:
    return [Document(id=f"d{i}", text=f"alpha{i} beta{i} gamma{i} delta{i}") for i in range(number)]


def questions(number: int = 6, **changes: object) -> list[Question]:
    settings = {"max_questions": 100, "shots": 1, "characters": 500, "seed": 3} | changes
    return list(build_questions(documents(number), miner, **settings).questions)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ("The  Cat.", "cat"),
        ("a cat", "cat"),
        ("An apple, a day!", "apple day"),
        ("theatre", "theatre"),
        ("  U.S.A. ", "usa"),
        ("the", ""),
        ("Straße", "straße"),
    ],
)
def test_normalisation_is_that_of_squad(given_: str, expected: str) -> None:
    assert normalize(given_) == expected


@given(st.text())
def test_normalisation_is_idempotent_on_its_results_words(text: str) -> None:
    once = normalize(text)
    assert normalize(once).split() == [w for w in once.split() if w not in ("a", "an", "the")]


def test_exact_match_forgives_case_articles_and_punctuation_only() -> None:
    assert exact_match("The Beta.", "beta")
    assert not exact_match("beta gamma", "beta")


def test_the_choice_of_documents_is_the_same_in_any_order_and_counts_duplicates_once() -> None:
    docs = documents(30)
    first, counts = choose_documents(docs, 7, seed=1)
    again, _ = choose_documents(reversed(docs), 7, seed=1)
    other, _ = choose_documents(docs, 7, seed=2)
    assert first == again
    assert {d.id for d in first} != {d.id for d in other}
    assert counts == {"available": 30, "used": 7, "duplicates": 0, "cut": 0}
    twice, counts = choose_documents([*docs, *(Document(id=f"x{d.id}", text=d.text) for d in docs)], 100, seed=1)
    assert len(twice) == 30
    assert counts["duplicates"] == 30


@given(st.lists(st.text(min_size=1, max_size=3), max_size=40), st.integers(1, 10))
def test_as_many_documents_as_there_are_different_texts_and_no_more_than_asked(texts: list[str], most: int) -> None:
    chosen, counts = choose_documents((Document(id=str(i), text=t) for i, t in enumerate(texts)), most, seed=0)
    assert len(chosen) == min(most, len(set(texts))) == len({d.text for d in chosen})
    assert counts["available"] == len(texts)


def test_an_excerpt_ends_between_words_and_is_never_longer() -> None:
    assert excerpt("one two three", 9) == "one two"
    assert excerpt("onetwothree", 6) == "onetwo"
    assert excerpt(" short ", 100) == "short"
    assert excerpt_characters(512, 1) == 512
    assert excerpt_characters(64, 3) == 200
    assert excerpt_characters(2048, 0) == 1200


def test_questions_take_turns_by_kind_and_hold_their_answers() -> None:
    found = questions(max_questions=7)
    assert [q.kind for q in found] == ["options", "span", "yes-no", "options", "span", "yes-no", "options"]
    assert all(q.kind != "span" or normalize(q.answer) in normalize(q.context) for q in found)
    assert {q.kind: q.num_options for q in found} == {"options": 2, "span": 0, "yes-no": 2}


def test_solved_examples_come_from_other_documents_and_prefer_the_same_kind() -> None:
    for question in questions(shots=2):
        assert len(question.shots) == 2
        assert question.context not in {shot.context for shot in question.shots}
        assert len({shot.context for shot in question.shots}) == 2
        if question.kind == "yes-no":
            assert {shot.question for shot in question.shots} == {"Is it a text?"}


def test_a_single_document_has_no_examples_and_says_so() -> None:
    found = build_questions(documents(1), miner, max_questions=9, shots=2, characters=500, seed=3)
    assert [q.shots for q in found.questions] == [()] * 3
    assert found.dropped == {"shots-not-to-be-had": 6}


def test_pairs_that_cannot_be_judged_are_dropped_with_their_reason() -> None:
    def odd(text: str, seed: int, most: int) -> list[Pair]:
        return [
            Pair("Not there?", "zebra"),
            Pair("Only an article?", "the"),
            Pair("Long?", "alpha0 " * 6),
            Pair("Options?\nOptions:\n- one\n- two", "three"),
            Pair("Fine?", text.split()[0]),
        ]

    found = build_questions(documents(1), odd, max_questions=9, shots=0, characters=500, seed=3)
    assert [q.question for q in found.questions] == ["Fine?"]
    assert found.dropped == {
        "answer-empty-when-normalised": 1,
        "answer-not-among-options": 1,
        "answer-not-in-document": 1,
        "answer-too-long": 1,
    }


def test_a_reasoned_answer_is_judged_by_its_conclusion() -> None:
    def reasoned(text: str, seed: int, most: int) -> list[Pair]:
        first = text.split()[0]
        return [
            Pair(
                "What comes first?\nLet's think step by step.",
                f"It starts with it.\nTherefore, the answer is {first}",
            )
        ]

    found = build_questions(documents(1), reasoned, max_questions=9, shots=0, characters=500, seed=3)
    (question,) = found.questions
    assert (question.question, question.answer) == ("What comes first?", "alpha0")


def test_the_prompt_ends_at_the_answer_and_can_leave_examples_out() -> None:
    question = questions(shots=1)[0]
    shot = question.shots[0]
    whole = render_prompt(question)
    assert whole == (
        f"{shot.context}\n\nQuestion: {shot.question}\nAnswer: {shot.answer}\n\n"
        f"{question.context}\n\nQuestion: {question.question}\nAnswer:"
    )
    assert render_prompt(question, 0) == f"{question.context}\n\nQuestion: {question.question}\nAnswer:"


def test_the_majority_answer_is_the_most_frequent_of_its_kind_and_ties_go_by_the_alphabet() -> None:
    found = questions()
    majority = majority_answers(found)
    assert majority["yes-no"] == "yes"
    assert majority["span"] == min(normalize(q.answer) for q in found if q.kind == "span")


def test_chance_is_one_in_the_number_of_choices() -> None:
    by_kind = {q.kind: chance(q) for q in questions()}
    assert by_kind == {"options": 0.5, "yes-no": 0.5, "span": 0.0}


def test_the_set_is_a_function_of_its_inputs() -> None:
    assert questions() == questions()
    assert questions() != questions(seed=4)
