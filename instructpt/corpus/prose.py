"""Plain text helpers of the builtin corpus: cutting at paragraphs, and telling prose from code."""

from __future__ import annotations

import re
from collections.abc import Iterator

MAX_PIECE = 1500
MIN_PROSE = 80

_WORD = re.compile(r"(?<![\w.(\[\"'=])[A-Za-z][a-z]*(?:['-][a-z]+)?(?![\w(\[=])")
_CODE_LINE = re.compile(r"^\s*(>>>|\.\.\.( |$)|[$%#] |@\w|\||\+[-=+]+|[-=*~^]{4,}\s*$)")
_SENTENCE_END = re.compile(r"(?<=[.!?;])\s+")
_PROSE_SHARE = 0.55


def prose_share(text: str) -> float:
    """Share of the characters (white space aside) that belong to plain words on lines that are no doctest or table."""
    solid = len("".join(text.split()))
    if solid == 0:
        return 0.0
    lines = [line for line in text.splitlines() if not _CODE_LINE.match(line)]
    words = sum(len(match[0]) for line in lines for match in _WORD.finditer(line))
    return words / solid


def is_prose(text: str) -> bool:
    """Whether a text is mostly English sentences: long enough, and words outweigh code, doctests and tables."""
    return len(text) >= MIN_PROSE and prose_share(text) >= _PROSE_SHARE


def cut_paragraphs(text: str, limit: int = MAX_PIECE) -> Iterator[str]:
    """Pieces of at most ``limit`` characters that end between paragraphs (lines, sentences where one is longer).

    Pieces joined by blank lines hold the same words in the same order.
    """
    piece = ""
    for paragraph in _paragraphs(text, limit):
        joined = f"{piece}\n\n{paragraph}" if piece else paragraph
        if len(joined) > limit and piece:
            yield piece
            joined = paragraph
        piece = joined
    if piece:
        yield piece


def _paragraphs(text: str, limit: int) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", text):
        paragraph = paragraph.strip("\n").rstrip()
        if not paragraph.strip():
            continue
        if len(paragraph) <= limit:
            yield paragraph
            continue
        parts = paragraph.split("\n") if "\n" in paragraph else _SENTENCE_END.split(paragraph)
        yield from _refill(parts, "\n" if "\n" in paragraph else " ", limit)


def _refill(parts: list[str], glue: str, limit: int) -> Iterator[str]:
    piece = ""
    for part in parts:
        joined = f"{piece}{glue}{part}" if piece else part
        if len(joined) > limit and piece:
            yield piece
            joined = part
        while len(joined) > limit:
            place = joined.rfind(" ", 1, limit)
            place = place if place > 0 else limit
            yield joined[:place].rstrip()
            joined = joined[place:].lstrip()
        piece = joined
    if piece:
        yield piece
