from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from instructpt.errors import EvaluationError
from instructpt.evaluation import likelihood
from instructpt.evaluation.language_model import LanguageModel
from instructpt.evaluation.likelihood import continuation_bits, plan_windows, text_bits

LETTERS = "ab\n"
START = len(LETTERS)
# Row: token before (a, b, line break, start). Column: probability of the next one.
BIGRAM = torch.tensor(
    [[0.5, 0.25, 0.125, 0.125], [0.25, 0.5, 0.125, 0.125], [0.25, 0.25, 0.25, 0.25], [0.125, 0.5, 0.25, 0.125]]
)


class Bigram:
    """The next token depends on the last one alone, with the probabilities above."""

    config = SimpleNamespace(vocab_size=4)

    def __init__(self) -> None:
        self.calls: list[tuple[int, ...]] = []

    def __call__(self, *, input_ids: torch.Tensor, attention_mask: torch.Tensor, use_cache: bool) -> Any:
        self.calls.append(tuple(input_ids.shape))
        return SimpleNamespace(logits=BIGRAM.log()[input_ids])


class Letters:
    """One token a letter."""

    def encode(self, text: str, *, add_special_tokens: bool, split_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        assert split_special_tokens
        return [LETTERS.index(letter) for letter in text]


def model(start: int | None = START) -> LanguageModel:
    return LanguageModel(model=Bigram(), tokenizer=Letters(), device=torch.device("cpu"), start=start, pad=2)


def by_hand(text: str, before: int) -> float:
    bits = 0.0
    for letter in text:
        token = LETTERS.index(letter)
        bits -= math.log2(BIGRAM[before, token].item())
        before = token
    return bits


def test_bits_by_hand() -> None:
    (got,) = text_bits(model(), ["abba"], context=64)
    # start->a 3 bits, a->b 2, b->b 1, b->a 2
    assert got.bits == pytest.approx(8.0)
    assert (got.num_bytes, got.num_tokens, got.windows) == (4, 4, 1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(alphabet=LETTERS, min_size=1, max_size=40), min_size=1, max_size=6), st.integers(2, 16))
def test_bits_in_windows_and_batches_are_those_by_hand(texts: list[str], context: int) -> None:
    got = text_bits(model(), texts, context=context)
    # A bigram looks one token back, so windows must change nothing.
    assert [b.bits for b in got] == pytest.approx([by_hand(text, START) for text in texts])


def test_without_a_start_token_the_first_token_costs_a_draw_from_the_vocabulary() -> None:
    (got,) = text_bits(model(None), ["ab"], context=8)
    assert got.bits == pytest.approx(2.0 + 2.0)


def test_only_the_continuation_counts() -> None:
    got = continuation_bits(model(), [[0, 0, 1], []], ["ab", "b"], context=16)
    assert got[0].bits == pytest.approx(by_hand("ab", LETTERS.index("b")))
    assert got[1].bits == pytest.approx(1.0)
    assert [b.num_bytes for b in got] == [2, 1]


def test_batches_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "_LOGIT_CELLS", 4 * 20)
    lm = model()
    got = text_bits(lm, ["abab" * 2] * 7, context=64)
    assert {b.bits for b in got} == {got[0].bits}
    assert lm.model.calls == [(2, 9), (2, 9), (2, 9), (1, 9)]


def test_empty_texts_and_broken_weights_are_refused() -> None:
    with pytest.raises(EvaluationError, match="empty text"):
        text_bits(model(), [""], context=8)
    lm = model()
    lm.model.__class__ = type("Broken", (Bigram,), {"__call__": _nan})
    with pytest.raises(EvaluationError, match="not a number"):
        text_bits(lm, ["ab"], context=8)


def _nan(self: Any, *, input_ids: torch.Tensor, **_: object) -> Any:
    return SimpleNamespace(logits=torch.full((*input_ids.shape, 4), float("nan")))


@given(st.integers(2, 300), st.integers(1, 300), st.integers(2, 64))
def test_every_token_is_scored_once_with_half_a_context_before_it(length: int, first: int, context: int) -> None:
    windows = plan_windows(length, first, context)
    scored = [i for w in windows for i in range(w.scored, w.end)]
    assert scored == list(range(first, length))
    for window in windows:
        assert 0 <= window.begin < window.scored < window.end <= length
        assert window.end - window.begin <= context
        assert window.begin == 0 or window.scored - window.begin >= context // 2
