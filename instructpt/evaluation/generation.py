"""Greedy answers for exact match, and how a prompt is made to fit the context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from instructpt.evaluation.language_model import LanguageModel
from instructpt.evaluation.tasks import Question, render_prompt

# Prompt tokens in one batch, with the padding.
_BATCH_TOKENS = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedPrompt:
    """A prompt that leaves room for its answer.

    Attributes:
        ids: Token ids, without the start token.
        dropped_shots: Solved examples that did not fit.
        cut_tokens: Tokens of the document's beginning that did not fit either.
    """

    ids: tuple[int, ...]
    dropped_shots: int
    cut_tokens: int


def fit_prompt(lm: LanguageModel, question: Question, *, room: int) -> FittedPrompt:
    """The question's prompt in at most ``room`` tokens: examples are dropped first, then the document's beginning.

    The end of the prompt, which holds the question, always stays.
    """
    ids: list[int] = []
    for shots in range(len(question.shots), -1, -1):
        ids = lm.encode(render_prompt(question, shots))
        if len(ids) <= room:
            return FittedPrompt(ids=tuple(ids), dropped_shots=len(question.shots) - shots, cut_tokens=0)
    keep = max(1, room)
    return FittedPrompt(ids=tuple(ids[-keep:]), dropped_shots=len(question.shots), cut_tokens=max(0, len(ids) - keep))


def generate_answers(lm: LanguageModel, prompts: Sequence[Sequence[int]], *, max_tokens: int) -> list[str]:
    """Greedy continuations up to the first line break, EOS or ``max_tokens``, stripped, in the order of the prompts.

    Prompts are batched by length with padding on the left, always in the same order.
    """
    from transformers import GenerationConfig

    stops = _stop_ids(lm)
    config = GenerationConfig(
        do_sample=False, num_beams=1, max_new_tokens=max_tokens, pad_token_id=lm.pad, eos_token_id=stops or None
    )
    # The model's own generation defaults (temperature, penalties) would otherwise be merged in.
    lm.model.generation_config = config
    answers = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    while order:
        rows = max(1, _BATCH_TOKENS // (len(prompts[order[0]]) + 1 + max_tokens))
        batch, order = order[:rows], order[rows:]
        for i, text in zip(batch, _generate(lm, [prompts[i] for i in batch], config), strict=True):
            answers[i] = text
    return answers


def _generate(lm: LanguageModel, prompts: Sequence[Sequence[int]], config: Any) -> list[str]:
    lead = [] if lm.start is None else [lm.start]
    width = len(lead) + max(len(p) for p in prompts)
    ids = torch.full((len(prompts), width), lm.pad, dtype=torch.long)
    mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        tokens = torch.tensor([*lead, *prompt], dtype=torch.long)
        ids[row, width - len(tokens) :] = tokens
        mask[row, width - len(tokens) :] = 1
    with torch.inference_mode():
        out = lm.model.generate(
            input_ids=ids.to(lm.device), attention_mask=mask.to(lm.device), generation_config=config
        )
    texts: list[str] = lm.tokenizer.batch_decode(out[:, width:].cpu(), skip_special_tokens=True)
    return [(text.lstrip(" ").splitlines() or [""])[0].strip() for text in texts]


def _stop_ids(lm: LanguageModel) -> list[int]:
    """EOS and every token that holds a line break."""
    size = min(len(lm.tokenizer), lm.vocab_size)
    texts: list[str] = lm.tokenizer.batch_decode([[i] for i in range(size)])
    stops = {i for i, text in enumerate(texts) if "\n" in text}
    if lm.tokenizer.eos_token_id is not None:
        stops.add(int(lm.tokenizer.eos_token_id))
    return sorted(stops)
