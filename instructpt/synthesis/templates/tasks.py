"""A pair as the reference takes it apart, before its patterns are filled in."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from instructpt.synthesis.model import (
    CONCLUSION_MARK,
    OPTION_SEPARATOR,
    OPTIONS_MARK,
    STEP_BY_STEP,
    Pair,
    PairKind,
    with_options,
)
from instructpt.synthesis.templates.shapes import GOLD_NOT_IN_OPTIONS, TOO_MANY_OPTIONS

BROKEN_REASONING = "broken-reasoning"
BROKEN_OPTIONS = "broken-options"


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionStyle:
    """How the options of a question are listed, and what stands for an answer that none of them gives."""

    heading: str
    labels: tuple[str, ...]
    ends: tuple[str, ...]
    none_of_these: frozenset[str]
    none_shown: str

    @property
    def tells_apart(self) -> bool:
        """Whether a label names its option: letters and numbers do, dashes do not."""
        return len(set(self.labels)) == len(self.labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a pattern is filled in with.

    Attributes:
        kind: Which patterns it takes.
        values: Placeholder to text.
        options: The options in the order of the question.
    """

    kind: PairKind
    values: Mapping[str, str]
    options: tuple[str, ...] = ()

    def with_options_in_question(self) -> Task:
        """The same with its options as they stood, for lists that no labels reach to the end of."""
        values = {**self.values, "question": with_options(self.values["question"], self.options)}
        return Task(kind="cot" if "cot" in values else "free", values=values)


_NOTHING = Task(kind="free", values={})


def read_pair(pair: Pair, style: OptionStyle, seed: int) -> tuple[Task, str]:
    """The task of a pair, or why it has none (then the first is without meaning).

    Args:
        pair: The pair; its kind does not count.
        style: How options are listed.
        seed: Decides their order.
    """
    question, answer, reasoning = pair.question, pair.answer, ""
    if STEP_BY_STEP in question or CONCLUSION_MARK in answer:
        question, reasoning, answer = _reasoning(question, answer)
        if not (question and reasoning and answer):
            return _NOTHING, BROKEN_REASONING
    values = {"question": question, "answer": answer}
    if reasoning:
        values["cot"] = reasoning
    if OPTIONS_MARK not in question:
        return Task(kind="cot" if reasoning else "free", values=values), ""
    stem, *listed = question.split(OPTIONS_MARK)
    if len(listed) != 1 or not stem:
        return _NOTHING, BROKEN_OPTIONS
    options = listed[0].split(OPTION_SEPARATOR)
    shown, choice, fault = _choose(options, answer, style, seed)
    if fault:
        return _NOTHING, fault
    values |= {"question": stem, "options_": shown, "option_answer": choice}
    return Task(kind="options-cot" if reasoning else "options", values=values, options=tuple(options)), ""


def _reasoning(question: str, answer: str) -> tuple[str, str, str]:
    """Question, reasoning without a full stop at its end, and conclusion; one of them is empty if a mark is."""
    before, *after = answer.split(CONCLUSION_MARK)
    if not question.endswith(STEP_BY_STEP) or len(after) != 1:
        return "", "", ""
    return question.removesuffix(STEP_BY_STEP).strip(), before.strip().removesuffix("."), after[0].strip()


def _choose(options: list[str], answer: str, style: OptionStyle, seed: int) -> tuple[str, str, str]:
    """The listed options, the gold one as it is named, and why there is none."""
    shuffled = list(options)
    random.Random(seed).shuffle(shuffled)
    # Where labels or ends run out, so does the list.
    listed = (label + option + end for label, option, end in zip(style.labels, shuffled, style.ends, strict=False))
    shown = style.heading + "".join(listed)
    if answer not in shuffled and answer in style.none_of_these:
        return shown, style.none_shown, ""
    gold = next((index for index, option in enumerate(shuffled) if option.strip() == answer.strip()), None)
    if gold is None:
        return shown, "", GOLD_NOT_IN_OPTIONS
    if not style.tells_apart:
        return shown, answer, ""
    if gold >= len(style.labels):
        return shown, "", TOO_MANY_OPTIONS
    return shown, style.labels[gold].strip(), ""
