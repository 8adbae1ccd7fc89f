from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructpt.synthesis import Pair, Shot, kind_of, make_pair
from instructpt.synthesis.model import PAIR_KINDS, parts_of, with_options, with_reasoning

STEPS = "\nLet's think step by step."
THEREFORE = "\nTherefore, the answer is "


def test_pair_and_shot_are_built_by_position_and_immutable():
    pair = Pair("q", "a")
    assert (pair.question, pair.answer, pair.kind) == ("q", "a", "free")
    assert Shot("d", (pair,)).pairs == (pair,)
    with pytest.raises(AttributeError):
        pair.question = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("question", "answer", "kind"),
    [
        ("What?", "That.", "free"),
        ("What?\nOptions:\n- a\n- b", "a", "options"),
        (f"What?{STEPS}", f"Because.{THEREFORE}a.", "cot"),
        (f"What?\nOptions:\n- a\n- b{STEPS}", f"Because.{THEREFORE}a.", "options-cot"),
        ("What? Options:\n- a", "a", "free"),
        (f"What?{STEPS}", "a", "free"),
        ("What?", f"Because.{THEREFORE}a.", "free"),
        (f"What?{STEPS}", f"x{THEREFORE}a{THEREFORE}b", "free"),
        (f"What?{STEPS} ", f"Because.{THEREFORE}a.", "free"),
        ("", "", "free"),
    ],
)
def test_kind_of(question: str, answer: str, kind: str):
    assert kind_of(question, answer) == kind
    assert make_pair(question, answer).kind == kind


def test_parts():
    pair = with_reasoning(with_options("Which?", ["red", "dark blue"]), "The sky.", "dark blue")
    parts = parts_of(pair.question, pair.answer)
    assert pair.kind == parts.kind == "options-cot"
    assert parts.stem == "Which?"
    assert parts.options == ("red", "dark blue")
    assert (parts.reasoning, parts.conclusion) == ("The sky.", "dark blue")


@settings(deadline=None)
@given(st.text(), st.text())
def test_any_text_has_a_kind_and_its_parts_lose_nothing(question: str, answer: str):
    parts = parts_of(question, answer)
    assert parts.kind in PAIR_KINDS
    rebuilt = with_options(parts.stem, parts.options) if parts.options else parts.stem
    assert rebuilt + (STEPS if parts.reasoning else "") == question
    assert (parts.reasoning + THEREFORE if parts.reasoning else "") + parts.conclusion == answer
