from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructpt.corpus.text.repetition import repetition


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0.0),
        ("one two three four five six seven", 0.0),
        ("a b c d e a b c d e", 0.5),  # the second five of ten words
        ("a b c d e f a b c d e g", 5 / 12),
        ("x " * 10, 0.9),  # the first of six equal runs covers the first five words, the others the last nine
        ("line one\nline one\nline two", 1 / 3),
        ("\n\n\n \n", 0.0),
        ("no yes\nno yes\nno yes\nno yes", 0.75),
    ],
)
def test_share(text: str, share: float) -> None:
    assert repetition(text) == pytest.approx(share)


@given(st.text(max_size=200))
def test_it_is_a_share(text: str) -> None:
    assert 0.0 <= repetition(text) <= 1.0


@given(st.lists(st.sampled_from("abcdefgh"), min_size=5, max_size=40))
def test_saying_it_all_again_repeats_at_least_half(words: list[str]) -> None:
    assert repetition(" ".join(words + words)) >= 0.5
