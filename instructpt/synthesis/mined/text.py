"""A document as the miners see it: blocks, lines, sentences and words, white space normalised."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from instructpt.synthesis.mined.candidate import words

MAX_SENTENCE_WORDS = 40
MIN_SENTENCE_WORDS = 3
MAX_WORD_CHARS = 60
MAX_TITLE_WORDS = 8
MIN_LETTER_SHARE = 0.7
_BULLET = re.compile(r"^(?:[-*+\u2022]|\d{1,2}[.)])\s+")
_CODE_LINE = re.compile(
    r"^\s*(?:>>>|\.\.\.(?:\s|$)|\$ |#!|@\w|[-=~+|^_*`]{3,}|(?:async )?def \w|class \w+[(:]|import \w|from \S+ import "
    r"|[A-Za-z_][\w.]*\(.*\)(?: ?->.*)?:?$)"
)
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]?\s+(?=[\"'(\[]?[A-Z0-9_])")
_EDGE = "\"'`.,;:!?()[]{}<>"


@dataclass(frozen=True, slots=True, kw_only=True)
class MinedText:
    """A document taken apart.

    Attributes:
        document: The document.
        flat: The document with every run of white space as one space.
        lines: Its stripped non-empty lines.
        title: Its first line if that is short, stands alone and is no sentence; else empty.
        sentences: Sentences of prose, in order; the title, code and tables left out.
        vocabulary: Its words, lower-cased, without punctuation at their edges.
    """

    document: str
    flat: str
    lines: tuple[str, ...]
    title: str
    sentences: tuple[str, ...]
    vocabulary: frozenset[str]

    @classmethod
    def of(cls, document: str) -> MinedText:
        """Take a document apart; any text will do."""
        blocks: list[list[str]] = [[]]
        for line in document.splitlines():
            if line.strip():
                blocks[-1].append(line)
            elif blocks[-1]:
                blocks.append([])
        if not blocks[-1]:
            blocks.pop()
        flat = " ".join(document.split())
        title = _title(blocks)
        return cls(
            document=document,
            flat=flat,
            lines=tuple(line.strip() for block in blocks for line in block),
            title=title,
            sentences=tuple(sentence for block in blocks[bool(title) :] for sentence in _sentences(block)),
            vocabulary=frozenset(bare(word).lower() for word in flat.split()),
        )

    @property
    def short_sentences(self) -> tuple[str, ...]:
        """The sentences of at most 16 words that can be put into double quotes."""
        return tuple(sentence for sentence in self.sentences if len(sentence.split()) <= 16 and '"' not in sentence)

    def holds(self, fragment: str) -> bool:
        """Whether a fragment stands in the document, white space aside."""
        return bool(fragment) and fragment in self.flat


def bare(word: str) -> str:
    """A word without the punctuation at its edges."""
    return word.strip(_EDGE)


def is_content(word: str) -> bool:
    """Whether a word carries meaning: three letters or more, only letters, no stop word."""
    return len(word) >= 3 and word.isalpha() and word.lower() not in _stop_words()


@cache
def _stop_words() -> frozenset[str]:
    return frozenset(words("stop_words"))


@cache
def _abbreviations() -> tuple[str, ...]:
    return words("abbreviations")


def _title(blocks: list[list[str]]) -> str:
    """The first paragraph if it is one short line without a full stop, a comma or the like at its end."""
    if len(blocks) < 2 or len(blocks[0]) > 1:
        return ""
    title = " ".join(blocks[0][0].lstrip("#= \t").split())
    is_short = 0 < len(title.split()) <= MAX_TITLE_WORDS
    return title if is_short and title[-1] not in ".?!:;,)" and any(map(str.isalpha, title)) else ""


def _sentences(block: list[str]) -> list[str]:
    """The sentences of a paragraph; a bullet begins a new one, a line of code ends one."""
    runs: list[list[str]] = [[]]
    for line in block:
        stripped = line.strip()
        if _CODE_LINE.match(line):
            runs.append([])
            continue
        if _BULLET.match(stripped):
            runs.append([])
            stripped = _BULLET.sub("", stripped)
        runs[-1].append(stripped)
    return [sentence for run in runs for sentence in _split(" ".join(" ".join(run).split())) if _is_prose(sentence)]


def _split(text: str) -> list[str]:
    """Cut at the ends of sentences; what ends in an abbreviation goes on."""
    sentences: list[str] = []
    open_part = ""
    for part in _SENTENCE_END.split(text):
        joined = f"{open_part} {part}".strip()
        last = joined.rsplit(" ", 1)[-1].lstrip("(")
        if last in _abbreviations():
            open_part = joined
            continue
        sentences.append(joined)
        open_part = ""
    return [*sentences, open_part] if open_part else sentences


def _is_prose(sentence: str) -> bool:
    tokens = sentence.split()
    # The bound on words keeps every search over a sentence short, whatever the document holds.
    if not MIN_SENTENCE_WORDS <= len(tokens) <= MAX_SENTENCE_WORDS or max(map(len, tokens)) > MAX_WORD_CHARS:
        return False
    letters = sum(character.isalpha() or character == " " for character in sentence)
    return letters >= MIN_LETTER_SHARE * len(sentence)
