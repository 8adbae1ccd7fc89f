from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from instructpt.corpus.augmented import PairRow
from instructpt.evaluation.highlight import highlight
from instructpt.synthesis.model import with_options

letters = st.text(alphabet="ab \n", max_size=12)


def pair(question: str, answer: str) -> PairRow:
    return PairRow(question=question, answer=answer, kind="free")


def roles(text: str, *pairs: PairRow) -> list[tuple[str, str]]:
    return [(s.role, s.text) for s in highlight(text, pairs) if s.role != "text"]


def test_questions_and_answers_in_their_places() -> None:
    text = "yes, a text. Q: Is it? A: yes. Q: Which one? A: this"
    assert roles(text, pair("Is it?", "yes"), pair("Which one?", "this")) == [
        ("question", "Is it?"), ("answer", "yes"), ("question", "Which one?"), ("answer", "this"),
    ]  # fmt: skip
    assert [s.text for s in highlight(text, [pair("Is it?", "yes")])][0] == "yes, a text. Q: "


def test_options_are_found_by_the_stem_and_reworded_questions_stay_plain() -> None:
    asked = with_options("Which?", ["one", "two"])
    assert roles("Which? (A) one (B) two -> two", pair(asked, "two"), pair("Gone?", "one")) == [
        ("question", "Which?"), ("answer", "two"),
    ]  # fmt: skip


@given(letters, st.lists(st.tuples(letters, letters), max_size=4))
def test_the_pieces_joined_are_the_text(text: str, pairs: list[tuple[str, str]]) -> None:
    assert "".join(s.text for s in highlight(text, [pair(q, a) for q, a in pairs])) == text
