"""The words of synthesis: pair, shot, and the four kinds of pair.

A chain is a ``Sequence[Shot]``: documents in order, each with the instruction-response pairs made from it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

PairKind = Literal["free", "options", "cot", "options-cot"]
PAIR_KINDS: tuple[PairKind, ...] = get_args(PairKind)

OPTIONS_MARK = "\nOptions:\n- "
OPTION_SEPARATOR = "\n- "
STEP_BY_STEP = "\nLet's think step by step."
CONCLUSION_MARK = "\nTherefore, the answer is "


@dataclass(frozen=True, slots=True)
class Pair:
    """An instruction-response pair; ``Pair(question, answer)`` is enough, ``make_pair`` also fills in the kind.

    Attributes:
        question: The instruction; may carry options and a request to think step by step (see ``parts_of``).
        answer: The response.
        kind: ``free``, ``options``, ``cot`` or ``options-cot``.
    """

    question: str
    answer: str
    kind: PairKind = "free"


@dataclass(frozen=True, slots=True)
class Shot:
    """A document and the pairs made from it (none when it stays raw)."""

    document: str
    pairs: tuple[Pair, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PairParts:
    """A pair taken apart by its marks.

    Attributes:
        kind: The kind of the pair.
        stem: The question without its options and without the request to think step by step.
        options: The options in their order; empty for the kinds without options.
        reasoning: What stands before the conclusion; empty for the kinds without chain of thought.
        conclusion: The final answer; the whole answer for the kinds without chain of thought.
    """

    kind: PairKind
    stem: str
    options: tuple[str, ...]
    reasoning: str
    conclusion: str


def parts_of(question: str, answer: str) -> PairParts:
    r"""Take a question and its answer apart.

    Options: the question holds ``\nOptions:\n- ``, its items are split on ``\n- ``. Chain of thought: the question
    ends with ``\nLet's think step by step.`` and the answer holds exactly one ``\nTherefore, the answer is ``.
    Both marks must be there for chain of thought; with one of them alone the text stays as it is. A question whose
    stem or options would be empty, or whose reasoning or conclusion would be, is not taken apart there.

    Source: arXiv 2406.14491, reference implementation's conventions for its templates.
    """
    stem, reasoning, conclusion = question, "", answer
    if question.endswith(STEP_BY_STEP) and answer.count(CONCLUSION_MARK) == 1:
        before, after = answer.split(CONCLUSION_MARK)
        asked = question[: -len(STEP_BY_STEP)]
        if asked.strip() and before.strip() and after.strip():
            stem, reasoning, conclusion = asked, before, after
    options: tuple[str, ...] = ()
    head, mark, tail = stem.partition(OPTIONS_MARK)
    if mark and head.strip():
        items = tuple(tail.split(OPTION_SEPARATOR))
        if all(item.strip() for item in items):
            stem, options = head, items
    kind: PairKind = "free"
    if options:
        kind = "options-cot" if reasoning else "options"
    elif reasoning:
        kind = "cot"
    return PairParts(kind=kind, stem=stem, options=options, reasoning=reasoning, conclusion=conclusion)


def kind_of(question: str, answer: str) -> PairKind:
    """The kind of a pair, by the marks in its text (see ``parts_of``)."""
    return parts_of(question, answer).kind


def make_pair(question: str, answer: str) -> Pair:
    """A pair with its kind derived from its text."""
    return Pair(question, answer, kind_of(question, answer))


def with_options(stem: str, options: Iterable[str]) -> str:
    """A question with options, in the form ``parts_of`` takes apart."""
    return stem + OPTIONS_MARK + OPTION_SEPARATOR.join(options)


def with_reasoning(question: str, reasoning: str, conclusion: str) -> Pair:
    """A chain-of-thought pair, in the form ``parts_of`` takes apart."""
    return make_pair(question + STEP_BY_STEP, reasoning + CONCLUSION_MARK + conclusion)
