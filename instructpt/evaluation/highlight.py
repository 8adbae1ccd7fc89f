"""Where in a templated text its questions and answers stand. Pure; used by the page."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from instructpt.corpus.augmented import PairRow
from instructpt.synthesis.model import parts_of

Role = Literal["text", "question", "answer"]


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a text and what it is."""

    text: str
    role: Role


def highlight(text: str, pairs: Iterable[PairRow]) -> list[Segment]:
    """Cut a text at its pairs; the pieces joined are the text.

    A question is looked for by its stem, from the end of the pair before; its answer (the conclusion of a reasoned one)
    after it. What a template reworded beyond recognition stays plain text.
    """
    spans: list[tuple[int, int, Role]] = []
    position = 0
    for pair in pairs:
        parts = parts_of(pair.question, pair.answer)
        start = text.find(parts.stem, position)
        if start < 0:
            continue
        end = start + len(parts.stem)
        spans.append((start, end, "question"))
        position = end
        after = text.find(pair.answer, position)
        answer = pair.answer if after >= 0 else parts.conclusion
        after = text.find(answer, position)
        if after >= 0:
            position = after + len(answer)
            spans.append((after, position, "answer"))
    return _cut(text, spans)


def _cut(text: str, spans: list[tuple[int, int, Role]]) -> list[Segment]:
    segments: list[Segment] = []
    last = 0
    for start, end, role in spans:
        if start > last:
            segments.append(Segment(text[last:start], "text"))
        if end > start:
            segments.append(Segment(text[start:end], role))
        last = end
    if last < len(text):
        segments.append(Segment(text[last:], "text"))
    return segments
