from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from instructpt.synthesis.questions import DUPLICATE_QUESTION, NEAR_DUPLICATE_QUESTION, AskedQuestions


def kept(questions: list[str], similarity: float | None, *, indexed: bool) -> list[str]:
    asked, left = AskedQuestions(similarity, indexed=indexed), []
    for question in questions:
        if asked.reason(question) is None:
            asked.add(question)
            left.append(question)
    return left


def test_reasons() -> None:
    asked = AskedQuestions(0.6)
    asked.add("What is the name of the river?")
    assert asked.reason(" what is the name of the RIVER? ") == DUPLICATE_QUESTION
    assert asked.reason("What is the name of the river, please?") == NEAR_DUPLICATE_QUESTION
    assert asked.reason("Who was the king?") is None


def test_the_index_finds_nearly_what_comparing_all_finds() -> None:
    rng = random.Random(4)
    words = [f"w{i}" for i in range(3000)]
    questions = []
    for _ in range(300):
        base = rng.sample(words, 14)
        questions += [" ".join(base), " ".join([*base[:13], rng.choice(words)])]  # 12 of 14 word pairs: 0.857
    every = kept(questions, 0.8, indexed=False)
    assert len(every) == 300
    found = kept(questions, 0.8, indexed=True)
    assert 300 <= len(found) <= 315  # predicted: 97 % of 300 are found


words = st.lists(st.sampled_from(["a", "b", "c", "d", "e", "f"]), min_size=1, max_size=7).map(" ".join)


@given(st.lists(words, max_size=20), st.sampled_from([None, 0.3, 0.6, 1.0]), st.booleans())
def test_what_is_kept_is_kept_again(questions: list[str], similarity: float | None, indexed: bool) -> None:
    left = kept(questions, similarity, indexed=indexed)
    assert kept(left, similarity, indexed=indexed) == left
    assert set(left) <= set(questions)
    assert set(q.lower() for q in questions) >= {q.lower() for q in left}
