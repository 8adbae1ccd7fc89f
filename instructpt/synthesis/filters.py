"""Filters: which pairs are kept, each refusal counted by its reason.

A filter looks at one pair and gives a reason to drop it, or ``None``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from instructpt.errors import ConfigError
from instructpt.synthesis.model import Pair

EMPTY = "empty"
DUPLICATE_QUESTION = "duplicate-question"
QUESTION_TOO_SHORT = "question-too-short"
QUESTION_TOO_LONG = "question-too-long"
ANSWER_TOO_SHORT = "answer-too-short"
ANSWER_TOO_LONG = "answer-too-long"


Deduplicate = Literal["document", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterSettings:
    """What is kept. Lengths are characters of the stripped text.

    Attributes:
        deduplicate: ``document``: of a document a question, letter case aside, is asked once, and the first wins.
            ``none``: any number of times. Never over documents: that the same is asked of many is wanted.
        min_question_chars: The shortest question kept.
        max_question_chars: The longest question kept.
        min_answer_chars: The shortest answer kept.
        max_answer_chars: The longest answer kept.
    """

    deduplicate: Deduplicate = "document"
    min_question_chars: int = 1
    max_question_chars: int = 4000
    min_answer_chars: int = 1
    max_answer_chars: int = 8000

    def __post_init__(self) -> None:
        """Refuse bounds that no pair can meet.

        Raises:
            ConfigError: A lower bound is negative or above its upper bound.
        """
        for what in ("question", "answer"):
            low, high = getattr(self, f"min_{what}_chars"), getattr(self, f"max_{what}_chars")
            if low < 0 or high < low:
                raise ConfigError(
                    f"no {what} is between {low} and {high} characters long",
                    field=f"filters.min{what.capitalize()}Chars",
                    value=low,
                    fix="use 0 <= min <= max",
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterResult:
    """Kept pairs and the count of the dropped by reason; together they are all the pairs that came in."""

    kept: tuple[Pair, ...]
    dropped_by_reason: Mapping[str, int] = field(default_factory=dict)


PairFilter = Callable[[Pair, FilterSettings], str | None]


def by_emptiness(pair: Pair, settings: FilterSettings) -> str | None:
    """A pair needs a question and an answer."""
    return None if pair.question.strip() and pair.answer.strip() else EMPTY


def by_length(pair: Pair, settings: FilterSettings) -> str | None:
    """Question and answer are within their bounds."""
    question, answer = len(pair.question.strip()), len(pair.answer.strip())
    if question < settings.min_question_chars:
        return QUESTION_TOO_SHORT
    if question > settings.max_question_chars:
        return QUESTION_TOO_LONG
    if answer < settings.min_answer_chars:
        return ANSWER_TOO_SHORT
    if answer > settings.max_answer_chars:
        return ANSWER_TOO_LONG
    return None


FILTERS: tuple[PairFilter, ...] = (by_emptiness, by_length)


def apply(pairs: Iterable[Pair], settings: FilterSettings) -> FilterResult:
    """Keep what every filter lets through; a pair is counted under the first reason to drop it.

    Args:
        pairs: The pairs of one document, in their order.
        settings: What is kept.
    """
    asked: set[str] = set()
    kept: list[Pair] = []
    dropped: dict[str, int] = {}
    for pair in pairs:
        reason = next((found for found in (check(pair, settings) for check in FILTERS) if found), None)
        question = pair.question.strip().lower()
        if reason is None and settings.deduplicate != "none" and question in asked:
            reason = DUPLICATE_QUESTION
        if reason is not None:
            dropped[reason] = dropped.get(reason, 0) + 1
            continue
        asked.add(question)
        kept.append(pair)
    return FilterResult(kept=tuple(kept), dropped_by_reason=dropped)
