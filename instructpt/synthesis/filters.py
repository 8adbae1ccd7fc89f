"""Filters: which pairs are kept, each refusal counted by its reason.

A filter looks at one pair and the document it was made from, and gives a reason to drop it, or ``None``. What ships
here is turned on by the spec; another distribution adds one through the entry-point group ``instructpt.filters`` (a
function of type ``PluginFilter``), and the spec names it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from instructpt.api.v1alpha1.filters import Filters
from instructpt.corpus.text.language import UNKNOWN, language_of
from instructpt.corpus.text.repetition import repetition
from instructpt.corpus.text.words import words_of
from instructpt.errors import ConfigError, SynthesisError
from instructpt.synthesis.groundedness import support
from instructpt.synthesis.model import Pair
from instructpt.synthesis.questions import DUPLICATE_QUESTION as DUPLICATE_QUESTION
from instructpt.synthesis.questions import NEAR_DUPLICATE_QUESTION as NEAR_DUPLICATE_QUESTION
from instructpt.synthesis.questions import AskedQuestions
from instructpt.synthesis.registry import Registry

if TYPE_CHECKING:
    from instructpt.corpus.contamination import EvaluationNgrams  # loads pyarrow, which a look at names does not need

ENTRY_POINT_GROUP = "instructpt.filters"

EMPTY = "empty"
QUESTION_TOO_SHORT = "question-too-short"
QUESTION_TOO_LONG = "question-too-long"
ANSWER_TOO_SHORT = "answer-too-short"
ANSWER_TOO_LONG = "answer-too-long"
REPETITION = "repetition"
LANGUAGE = "language"
NOT_GROUNDED = "not-grounded"
CONTAMINATED = "contaminated"

_WORD = re.compile(r"\w+")


Deduplicate = Literal["document", "none"]

PluginFilter = Callable[[Pair, str], bool]
"""Of a pair and the text of its document: whether to drop it. Names are reasons, so that their number is bounded."""

registry: Registry[PluginFilter] = Registry("filter", ENTRY_POINT_GROUP)


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterSettings:
    """What is kept. Lengths are characters of the stripped text.

    Attributes:
        deduplicate: ``document``: of a document a question, letter case aside, is asked once, and the first wins.
            ``none``: any number of times. Never over documents: that the same is asked of many is wanted.
        question_similarity: From which likeness on two questions are one; None compares them as they are.
        min_question_chars: The shortest question kept.
        max_question_chars: The longest question kept.
        min_answer_chars: The shortest answer kept.
        max_answer_chars: The longest answer kept.
        max_repetition: The largest share of a question or an answer that says again what it said; None takes all.
        languages: Those that are kept, and what cannot be told; empty keeps all.
        share_a_word: A free answer needs a word of its document.
        min_groundedness: Share of a free answer's content words that its document must have.
        evaluation: N-grams that no pair may share; None takes all.
        plugins: Names and filters of other distributions, applied last.
        keep_empty_questions: What the reference implementation does (``compat: reference``).
    """

    deduplicate: Deduplicate = "document"
    question_similarity: float | None = None
    min_question_chars: int = 1
    max_question_chars: int = 4000
    min_answer_chars: int = 1
    max_answer_chars: int = 8000
    max_repetition: float | None = None
    languages: tuple[str, ...] = ()
    share_a_word: bool = False
    min_groundedness: float = 0.0
    evaluation: EvaluationNgrams | None = None
    plugins: tuple[tuple[str, PluginFilter], ...] = ()
    keep_empty_questions: bool = False

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

    @classmethod
    def of(cls, given: Filters, deduplicate: Deduplicate) -> FilterSettings:
        """What a spec asks for, but for evaluation sets, which are read from storage.

        Args:
            given: Of the spec.
            deduplicate: The strategy's; the spec may turn it off.

        Raises:
            ConfigError: A plug-in is unknown or cannot be imported.
        """
        return cls(
            deduplicate=deduplicate if given.deduplicate_questions else "none",
            question_similarity=given.question_similarity,
            min_question_chars=given.min_question_characters,
            max_question_chars=given.max_question_characters,
            min_answer_chars=given.min_answer_characters,
            max_answer_chars=given.max_answer_characters,
            max_repetition=given.max_repetition,
            languages=given.languages,
            share_a_word=given.require_grounded_answers,
            min_groundedness=given.min_groundedness,
            plugins=tuple((name, registry.get(name)) for name in given.plugins),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterResult:
    """Kept pairs and the count of the dropped by reason; together they are all the pairs that came in."""

    kept: tuple[Pair, ...]
    dropped_by_reason: Mapping[str, int] = field(default_factory=dict)

    @property
    def num_pairs(self) -> int:
        """All pairs that came in."""
        return len(self.kept) + sum(self.dropped_by_reason.values())


@dataclass(frozen=True)
class Source:
    """The document that pairs were made from; what filters need of it is worked out once, if at all."""

    text: str

    @cached_property
    def words(self) -> frozenset[str]:
        """All its words."""
        return frozenset(words_of(self.text))

    @cached_property
    def raw_words(self) -> frozenset[str]:
        """All its words, underscores in them."""
        return frozenset(_WORD.findall(self.text.lower()))


PairFilter = Callable[[Pair, Source, FilterSettings], str | None]


def by_emptiness(pair: Pair, source: Source, settings: FilterSettings) -> str | None:
    """A pair needs a question and an answer."""
    asked = settings.keep_empty_questions or pair.question.strip()
    return None if asked and pair.answer.strip() else EMPTY


def by_length(pair: Pair, source: Source, settings: FilterSettings) -> str | None:
    """Question and answer are within their bounds."""
    question, answer = len(pair.question.strip()), len(pair.answer.strip())
    if question < settings.min_question_chars and not (settings.keep_empty_questions and not question):
        return QUESTION_TOO_SHORT
    if question > settings.max_question_chars:
        return QUESTION_TOO_LONG
    if answer < settings.min_answer_chars:
        return ANSWER_TOO_SHORT
    if answer > settings.max_answer_chars:
        return ANSWER_TOO_LONG
    return None


def by_repetition(pair: Pair, source: Source, settings: FilterSettings) -> str | None:
    """Neither question nor answer repeats itself too much; that an answer takes up its question is no repetition."""
    if settings.max_repetition is None:
        return None
    return REPETITION if max(map(repetition, (pair.question, pair.answer))) > settings.max_repetition else None


def by_language(pair: Pair, source: Source, settings: FilterSettings) -> str | None:
    """The pair is in one of the languages, or its language cannot be told."""
    if not settings.languages:
        return None
    return LANGUAGE if language_of(f"{pair.question}\n{pair.answer}") not in (*settings.languages, UNKNOWN) else None


def by_groundedness(pair: Pair, source: Source, settings: FilterSettings) -> str | None:
    """The document supports a free answer; other kinds take their answers from options or reasoning."""
    if pair.kind != "free":
        return None
    if settings.share_a_word and source.raw_words.isdisjoint(_WORD.findall(pair.answer.lower())):
        return NOT_GROUNDED
    bound = settings.min_groundedness
    return NOT_GROUNDED if bound and support(pair.answer, source.words) < bound else None


def by_contamination(pair: Pair, source: Source, settings: FilterSettings) -> str | None:
    """Question and answer, read as one text, hold nothing of an evaluation."""
    if settings.evaluation is None:
        return None
    return CONTAMINATED if settings.evaluation.contaminate(f"{pair.question}\n{pair.answer}") else None


def by_plugins(pair: Pair, source: Source, settings: FilterSettings) -> str | None:
    """What filters of other distributions drop, each counted under its name.

    Raises:
        SynthesisError: One of them failed, or gave neither True nor False.
    """
    for name, plugin in settings.plugins:
        try:
            drops: object = plugin(pair, source.text)
        except Exception as error:
            # To go on without it would let through what it was to drop.
            raise SynthesisError(
                f"the filter {name} raised {type(error).__name__}: {error}",
                fix="repair that distribution, or take the filter out of filters.plugins",
            ) from error
        if not isinstance(drops, bool):
            raise SynthesisError(
                f"the filter {name} gave {drops!r}",
                fix="it must give True to drop a pair and False to keep it: repair that distribution",
            )
        if drops:
            return f"plugin-{name}"
    return None


FILTERS: tuple[PairFilter, ...] = (
    by_emptiness,
    by_length,
    by_repetition,
    by_language,
    by_groundedness,
    by_contamination,
    by_plugins,
)
"""In the order in which they are asked; questions asked before are dropped after all of them."""


def drop_asked(pairs: Iterable[Pair], asked: AskedQuestions) -> FilterResult:
    """Keep the pairs whose question was not asked before, and remember their questions."""
    return _keep(pairs, asked, lambda pair: asked.reason(pair.question))


def apply(pairs: Iterable[Pair], settings: FilterSettings, document: str = "") -> FilterResult:
    """Keep what every filter lets through; a pair is counted under the first reason to drop it.

    Args:
        pairs: The pairs of one document, in their order.
        settings: What is kept.
        document: The text of that document.
    """
    source = Source(document)
    asked = AskedQuestions(settings.question_similarity)

    def reason_of(pair: Pair) -> str | None:
        reason = next((found for found in (check(pair, source, settings) for check in FILTERS) if found), None)
        return asked.reason(pair.question) if reason is None and settings.deduplicate != "none" else reason

    return _keep(pairs, asked, reason_of)


def _keep(pairs: Iterable[Pair], asked: AskedQuestions, reason_of: Callable[[Pair], str | None]) -> FilterResult:
    kept: list[Pair] = []
    dropped: dict[str, int] = {}
    for pair in pairs:
        reason = reason_of(pair)
        if reason is not None:
            dropped[reason] = dropped.get(reason, 0) + 1
            continue
        asked.add(pair.question)
        kept.append(pair)
    return FilterResult(kept=tuple(kept), dropped_by_reason=dropped)
