"""Negative log-likelihood of texts and of answers, in bits, so that models with different tokenizers compare.

Bits per byte = sum over tokens of -log2 p(token | before) / UTF-8 bytes of the text (arXiv 2101.00027, section 3.1).

A document longer than the context is read in windows: each after the first starts half a context before the tokens it
scores, so every token is scored once, and all but the first half context of a document with at least half a context
before it. A document starts after the start token (BOS, else EOS); where a tokenizer has neither, its first token is
counted as one draw out of the whole vocabulary.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from instructpt.errors import EvaluationError
from instructpt.evaluation.language_model import LanguageModel

# Logits held at once, in elements: 128 MiB of fp32.
_LOGIT_CELLS = 1 << 25
_IGNORE = -100


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """One forward pass over part of a sequence.

    Attributes:
        begin: First token that goes in.
        end: One after the last.
        scored: First token whose probability counts; at least ``begin + 1``.
    """

    begin: int
    end: int
    scored: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bits:
    """Code length of one text.

    Attributes:
        bits: Sum of -log2 p over its tokens.
        num_bytes: UTF-8 bytes of the text that was scored.
        num_tokens: Tokens scored.
        windows: Forward passes it took.
    """

    bits: float
    num_bytes: int
    num_tokens: int
    windows: int


def plan_windows(length: int, first: int, context: int) -> list[Window]:
    """Windows of at most ``context`` tokens that score each of the tokens ``first`` to ``length - 1`` once.

    Args:
        length: Tokens of the sequence.
        first: First token to be scored, at least 1.
        context: Tokens in a window, at least 2.
    """
    windows: list[Window] = []
    scored = first
    while scored < length:
        # The first window takes as much as fits; a later one keeps half a context before what it scores.
        begin = 0 if scored < context and not windows else max(0, scored - context // 2)
        end = min(length, begin + context)
        windows.append(Window(begin=begin, end=end, scored=scored))
        scored = end
    return windows


def text_bits(lm: LanguageModel, texts: Sequence[str], *, context: int) -> list[Bits]:
    """Code length of each text on its own, in order; empty texts have none and are refused.

    Raises:
        EvaluationError: A text is empty, or the model gave a probability that is not a number.
    """
    return _score(lm, [([], lm.encode(text), len(text.encode("utf-8", "replace"))) for text in texts], context)


def continuation_bits(
    lm: LanguageModel, prompts: Sequence[Sequence[int]], texts: Sequence[str], *, context: int
) -> list[Bits]:
    """Code length of each text after its prompt; only the text's own tokens and bytes count.

    Args:
        lm: The model.
        prompts: Token ids of the prompts, the start token not among them. Prompt, text and start token together must
            fit the context for the prompt to count in full; see ``generation.fit_prompt``.
        texts: What follows, with its leading space; tokenized on its own.
        context: Tokens in a window.

    Raises:
        EvaluationError: As for :func:`text_bits`.
    """
    jobs = [
        (list(prompt), lm.encode(text), len(text.encode("utf-8", "replace")))
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    return _score(lm, jobs, context)


def _score(lm: LanguageModel, jobs: Sequence[tuple[list[int], list[int], int]], context: int) -> list[Bits]:
    sequences: list[list[int]] = []
    bits: list[float] = []
    work: list[tuple[int, Window]] = []
    for number, (prompt, ids, num_bytes) in enumerate(jobs):
        if not ids or num_bytes == 0:
            raise EvaluationError("an empty text has no bits per byte")
        lead = [] if lm.start is None else [lm.start]
        sequence = lead + prompt + ids
        first = len(sequence) - len(ids)
        # Nothing stands before the very first token: it costs what a draw from the vocabulary costs.
        bits.append(math.log2(lm.vocab_size) if first == 0 else 0.0)
        sequences.append(sequence)
        work += [(number, window) for window in plan_windows(len(sequence), max(1, first), context)]
    for batch in _batches(work, _LOGIT_CELLS // lm.vocab_size):
        for (number, _), nats in zip(batch, _forward(lm, sequences, batch), strict=True):
            bits[number] += nats / math.log(2)
    if not all(math.isfinite(b) for b in bits):
        raise EvaluationError(
            "the model gave a probability that is not a number", fix="its weights are broken; train again"
        )
    windows = [0] * len(jobs)
    for number, _ in work:
        windows[number] += 1
    return [
        Bits(bits=b, num_bytes=size, num_tokens=len(ids), windows=w)
        for b, (_, ids, size), w in zip(bits, jobs, windows, strict=True)
    ]


def _batches(work: list[tuple[int, Window]], cells: int) -> Iterator[list[tuple[int, Window]]]:
    """Windows of like length together, at most ``cells`` tokens a batch with the padding; always in the same order."""
    ordered = sorted(work, key=lambda w: (-(w[1].end - w[1].begin), w[0], w[1].begin))
    while ordered:
        longest = ordered[0][1].end - ordered[0][1].begin
        rows = max(1, cells // longest)
        yield ordered[:rows]
        ordered = ordered[rows:]


def _forward(lm: LanguageModel, sequences: list[list[int]], batch: list[tuple[int, Window]]) -> list[float]:
    """Nats of each window's scored tokens; one forward pass, padded on the right."""
    width = max(w.end - w.begin for _, w in batch)
    ids = torch.full((len(batch), width), lm.pad, dtype=torch.long)
    mask = torch.zeros((len(batch), width), dtype=torch.long)
    targets = torch.full((len(batch), width), _IGNORE, dtype=torch.long)
    for row, (number, w) in enumerate(batch):
        tokens = torch.tensor(sequences[number][w.begin : w.end], dtype=torch.long)
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
        # Position i predicts token i + 1.
        targets[row, w.scored - w.begin - 1 : len(tokens) - 1] = tokens[w.scored - w.begin :]
    # Logits are most of the memory and much of the work: only of positions that some row needs.
    needed = (targets != _IGNORE).any(dim=0).nonzero().squeeze(1)
    keep = {"logits_to_keep": needed.to(lm.device)} if _keeps_logits(lm.model) else {}
    with torch.inference_mode():
        logits = lm.model(
            input_ids=ids.to(lm.device), attention_mask=mask.to(lm.device), use_cache=False, **keep
        ).logits
        logits = logits if keep else logits[:, needed.to(lm.device)]
        nats = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1),
            targets[:, needed].flatten().to(lm.device),
            ignore_index=_IGNORE,
            reduction="none",
        )
    return [float(n) for n in nats.view(len(batch), -1).double().sum(dim=1).cpu()]


def _keeps_logits(model: Any) -> bool:
    """Whether the model's forward pass can be asked for the logits of some positions alone."""
    return "logits_to_keep" in inspect.signature(getattr(model, "forward", model)).parameters
