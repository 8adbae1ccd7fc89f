"""Cutting text at paragraphs, and telling prose from code."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from instructpt.corpus.prose import cut_paragraphs, is_prose

PROSE = "This function opens the file and returns an object that can be read line by line until it ends."


@given(st.text(alphabet="ab. \n", max_size=300), st.integers(5, 60))
def test_pieces_are_short_and_keep_the_letters(text, limit):
    pieces = list(cut_paragraphs(text, limit))
    assert all(0 < len(piece) <= limit for piece in pieces)
    assert "".join("".join(piece.split()) for piece in pieces) == "".join(text.split())


def test_paragraphs_stay_whole_where_they_fit():
    assert list(cut_paragraphs("one\n\ntwo\n\nthree four", 10)) == ["one\n\ntwo", "three four"]


def test_prose_and_code():
    assert is_prose(PROSE)
    assert not is_prose("Too short.")
    assert not is_prose(">>> open('x')\n<_io.TextIOWrapper name='x'>\n" * 5)
    assert not is_prose("def f(x, y=None):\n    return x[0](y)\n" * 5)
    assert not is_prose("+------+------+\n| name | text |\n+------+------+\n" * 3)
