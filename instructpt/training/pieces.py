"""Which parts of which parameters a flat tensor holds, and how a range of a parameter is put together from them. Pure.

ZeRO joins parameters to flat tensors and cuts those anywhere. A checkpoint keeps each rank's flat tensors as they lie
in memory, with their pieces; whoever resumes asks for the ranges that it holds, with any number of ranks and any stage.

Source: Rajbhandari et al., ZeRO, arXiv 1910.02054; Lian et al., Universal Checkpointing, arXiv 2406.18820.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from instructpt.errors import TrainingError


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Part of a parameter in a flat tensor.

    Attributes:
        name: Of the parameter.
        shape: Of the whole parameter.
        start: Where the part begins in the parameter, flattened; in elements, as all of these.
        offset: Where it begins in the flat tensor.
        size: Its length.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Where a stretch of a wanted range lies.

    Attributes:
        source: Index of the flat tensor among those that were given.
        offset: Where the stretch begins in it.
        at: Where it begins in the wanted range.
        size: Its length.
    """

    source: int
    offset: int
    at: int
    size: int


def spans(held: Sequence[tuple[int, Piece]], start: int, size: int, *, name: str) -> Iterator[Span]:
    """The stretches that make up ``start:start + size`` of a parameter, in order and each element once.

    Args:
        held: Index of a flat tensor and one of its pieces of this parameter, in any order; they may overlap.
        start: In elements of the flattened parameter.
        size: In elements.
        name: Of the parameter, for the message.

    Raises:
        TrainingError: An element is in no piece.
    """
    reached, end = start, start + size
    for source, piece in sorted(held, key=lambda h: (h[1].start, -h[1].size)):
        last = min(end, piece.start + piece.size)
        if last <= reached:
            continue
        if piece.start > reached:
            break
        at = max(piece.start, reached)
        yield Span(source=source, offset=piece.offset + at - piece.start, at=at - start, size=last - at)
        reached = last
        if reached >= end:
            return
    if reached < end:
        raise TrainingError(f"the checkpoint holds no element {reached} of {name}: a rank's part of it is missing")


def by_name(flats: Iterable[Sequence[Piece]]) -> dict[str, list[tuple[int, Piece]]]:
    """The pieces of each parameter, each with the index of its flat tensor; those of no length are left out."""
    found: dict[str, list[tuple[int, Piece]]] = {}
    for index, pieces in enumerate(flats):
        for piece in pieces:
            if piece.size:
                found.setdefault(piece.name, []).append((index, piece))
    return found
