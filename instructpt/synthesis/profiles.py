"""Profiles: the wire format between documents, pairs and a synthesizer model.

A profile is named and versioned and never edited in place: a fine-tuned synthesizer breaks without a word when its
format changes. Another format, or another language, is another profile, here or in another distribution through the
entry-point group ``instructpt.profiles`` (a callable that takes ``compat`` and gives a ``Profile``).

Source: arXiv 2406.14491 (Instruction Pre-Training) and its reference implementation's format.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args, runtime_checkable

from instructpt.errors import ConfigError
from instructpt.synthesis.model import Pair, Shot, make_pair
from instructpt.synthesis.registry import Registry

Compat = Literal["fixed", "reference"]
BosPolicy = Literal["single", "reference"]
ENTRY_POINT_GROUP = "instructpt.profiles"
DEFAULT_PROFILE = "instruction-synthesizer"

INCOMPLETE = "incomplete"
NO_ANSWER_TAG = "no-answer-tag"
SEVERAL_ANSWER_TAGS = "several-answer-tags"
NO_QUESTION_TAG = "no-question-tag"
EMPTY_ANSWER = "empty-answer"
EMPTY_QUESTION = "empty-question"
DUPLICATE_QUESTION = "duplicate-question"


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a tuning sequence; the loss is taken on it only if it is a target.

    Segments are tokenized one by one, so that the border between a context and its pairs falls where it falls in
    generation, when the prompt is tokenized without what follows.
    """

    text: str
    is_target: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ParseReport:
    """What a completion held: ``pieces == len(pairs) + sum(dropped_by_reason.values())``.

    Attributes:
        pairs: The pairs, in their order.
        pieces: How many pieces the completion was split into, the empty one after the last end tag not counted.
        dropped_by_reason: How many pieces were dropped, by reason.
    """

    pairs: tuple[Pair, ...]
    pieces: int
    dropped_by_reason: Mapping[str, int] = field(default_factory=dict)


@runtime_checkable
class Profile(Protocol):
    """A wire format. Implementations are pure: the same arguments give the same text."""

    @property
    def name(self) -> str:
        """The name users write in a spec."""

    @property
    def version(self) -> str:
        """Raised whenever a byte of the format changes; part of every cache key."""

    @property
    def compat(self) -> Compat:
        """``fixed``, or ``reference`` to reproduce the reference implementation with its faults."""

    @property
    def digest(self) -> str:
        """Hex sha256 of everything that decides the format."""

    @property
    def bos(self) -> str:
        """The string that opens a context; it stands in the rendered text."""

    @property
    def eos(self) -> str:
        """The string that ends the pairs of a document, where generation stops."""

    @property
    def bos_policy(self) -> BosPolicy:
        """``single``: the text is tokenized without added special tokens; ``reference``: with them (double BOS)."""

    @property
    def forbidden_tags(self) -> tuple[str, ...]:
        """Strings that mean something in the format and so may not stand inside a document."""

    def neutralise(self, document: str) -> tuple[str, int]:
        """The document without forbidden tags, and how many were changed."""

    def render(self, chain: Sequence[Shot], document: str) -> str:
        """The prompt for ``document`` after the earlier shots of its chain."""

    def lead_in(self, question: str) -> str:
        """What a completion holds up to the answer of its first question; a space and the answer follow."""

    def parse(self, completion: str) -> list[Pair]:
        """The pairs of a completion."""

    def parse_report(self, completion: str) -> ParseReport:
        """The pairs of a completion, and what was dropped and why."""

    def render_tuning(self, chain: Sequence[Shot]) -> list[Segment]:
        """A chain as one sequence for synthesizer tuning."""

    def missing_strings(self, vocabulary: Collection[str]) -> tuple[str, ...]:
        """Which of the strings that must be single tokens a tokenizer's vocabulary lacks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TagProfile:
    """A format of tags around contexts, questions and answers.

    With ``compat="fixed"`` a tag inside a document or a pair is neutralised, and a pair with an empty question is
    dropped; ``compat="reference"`` does neither. Both give the same bytes for text without tags.
    """

    name: str
    version: str
    compat: Compat = "fixed"
    bos: str
    eos: str
    context_open: str
    context_close: str
    question_tag: str
    answer_tag: str
    end_tag: str

    @property
    def bos_policy(self) -> BosPolicy:
        """``single`` unless the reference is to be reproduced: its engine call adds a second BOS."""
        return "reference" if self.compat == "reference" else "single"

    @property
    def digest(self) -> str:
        """Hex sha256 of name, version, compat and every string of the format."""
        parts = (self.name, self.version, self.compat, self.bos, self.eos, *self.tags)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags that are ordinary text, in the order of the format."""
        return (self.context_open, self.context_close, self.question_tag, self.answer_tag, self.end_tag)

    @property
    def forbidden_tags(self) -> tuple[str, ...]:
        """BOS, EOS and all tags."""
        return (self.bos, self.eos, *self.tags)

    @property
    def required_strings(self) -> tuple[str, ...]:
        """Strings a tokenizer must know as single tokens: BOS and EOS. The tags are ordinary text."""
        return (self.bos, self.eos)

    def missing_strings(self, vocabulary: Collection[str]) -> tuple[str, ...]:
        """Which of ``required_strings`` the vocabulary lacks, in their order."""
        return tuple(string for string in self.required_strings if string not in vocabulary)

    def neutralise(self, document: str) -> tuple[str, int]:
        """Put a space after the first character of every forbidden tag (``<QUE>`` becomes ``< QUE>``).

        The change is visible, small and can be undone by eye. It removes every tag in one pass: the result holds
        none, so a second pass changes nothing. ``compat="reference"`` gives the document back as it is.
        """
        if self.compat == "reference":
            return document, 0
        pattern = "|".join(re.escape(tag) for tag in sorted(self.forbidden_tags, key=len, reverse=True))
        return re.subn(pattern, lambda match: f"{match[0][0]} {match[0][1:]}", document)

    def render(self, chain: Sequence[Shot], document: str) -> str:
        """The prompt: every earlier shot with its pairs and EOS, nothing between them, then the current context."""
        earlier = (self._context(shot.document) + self._pairs(shot.pairs) + self.eos for shot in chain)
        return "".join(earlier) + self._context(document)

    def render_tuning(self, chain: Sequence[Shot]) -> list[Segment]:
        """Contexts are no targets; pairs with their EOS are (arXiv 2406.14491, section 2.1).

        A shot without pairs is no target at all: it keeps its place, but a model learns nothing from it. The texts
        joined are what ``render`` gives for the same chain.
        """
        segments: list[Segment] = []
        for shot in chain:
            segments.append(Segment(self._context(shot.document), is_target=False))
            segments.append(Segment(self._pairs(shot.pairs) + self.eos, is_target=bool(shot.pairs)))
        return segments

    def parse(self, completion: str) -> list[Pair]:
        """The pairs of a completion, in their order; see ``parse_report``."""
        return list(self.parse_report(completion).pairs)

    def parse_report(self, completion: str) -> ParseReport:
        """Split at the end tag; keep the pieces of one question and one answer; the first of equal questions wins.

        What follows the last end tag is incomplete (generation ran out of tokens) and dropped; it is counted unless
        it is nothing but white space and EOS.
        """
        *pieces, rest = completion.split(self.end_tag)
        dropped: dict[str, int] = {}
        count = len(pieces)
        if rest.replace(self.eos, "").strip():
            count += 1
            dropped[INCOMPLETE] = 1
        pairs: list[Pair] = []
        seen: set[str] = set()
        for piece in pieces:
            found = self._parse_piece(piece)
            if isinstance(found, Pair):
                lowered = found.question.lower()
                if lowered not in seen:
                    seen.add(lowered)
                    pairs.append(found)
                    continue
                found = DUPLICATE_QUESTION
            dropped[found] = dropped.get(found, 0) + 1
        return ParseReport(pairs=tuple(pairs), pieces=count, dropped_by_reason=dropped)

    def _parse_piece(self, piece: str) -> Pair | str:
        """The pair of a piece, or the reason why there is none."""
        parts = piece.split(self.answer_tag)
        if len(parts) != 2:
            return NO_ANSWER_TAG if len(parts) < 2 else SEVERAL_ANSWER_TAGS
        asked, answer = parts[0].strip(), parts[1].strip()
        if not asked.startswith(self.question_tag):
            return NO_QUESTION_TAG
        if not answer:
            return EMPTY_ANSWER
        question = asked.replace(self.question_tag, "").strip()
        if not question and self.compat == "fixed":
            return EMPTY_QUESTION
        return make_pair(question, answer)

    def _context(self, document: str) -> str:
        """The opening of a document; an empty one is BOS alone."""
        if not document:
            return self.bos
        text, _ = self.neutralise(document)
        return f"{self.bos} {self.context_open} {text} {self.context_close}\n\n"

    def _pairs(self, pairs: Sequence[Pair]) -> str:
        """The pairs, joined by an empty line."""
        return "\n\n".join(map(self._pair, pairs))

    def lead_in(self, question: str) -> str:
        """The question between its tag and the answer's."""
        return f"{self.question_tag} {self.neutralise(question)[0]} {self.answer_tag}"

    def _pair(self, pair: Pair) -> str:
        question, answer = self.neutralise(pair.question)[0], self.neutralise(pair.answer)[0]
        if self.compat == "reference":
            # There a question that holds the answer's placeholder has it filled in.
            question = question.replace("{answer}", answer)
        return f"{self.question_tag} {question} {self.answer_tag} {answer} {self.end_tag}"


def _instruction_synthesizer(compat: Compat) -> Profile:
    return TagProfile(
        name=DEFAULT_PROFILE,
        version="1",
        compat=compat,
        bos="<s>",
        eos="</s>",
        context_open="<CON>",
        context_close="</CON>",
        question_tag="<QUE>",
        answer_tag="<ANS>",
        end_tag="</END>",
    )


ProfileFactory = Callable[[Compat], Profile]
registry: Registry[ProfileFactory] = Registry("profile", ENTRY_POINT_GROUP)
registry.register(DEFAULT_PROFILE, _instruction_synthesizer)


def check_compat(compat: str) -> Compat:
    """``compat`` as a known value.

    Raises:
        ConfigError: It is neither ``fixed`` nor ``reference``.
    """
    for known in get_args(Compat):
        if compat == known:
            return known  # type: ignore[no-any-return]
    raise ConfigError("unknown compat", field="compat", value=compat, fix="use fixed or reference")


def load(name: str = DEFAULT_PROFILE, compat: str = "fixed") -> Profile:
    """The profile called ``name``.

    Raises:
        ConfigError: The name or ``compat`` is unknown; the message lists what is known.
    """
    return registry.get(name)(check_compat(compat))


def names() -> list[str]:
    """The names ``load`` knows."""
    return registry.names()
