"""What a template set gives, and what every template set is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from instructpt.synthesis.model import Shot
from instructpt.synthesis.profiles import Compat


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """A chain as text, and how it came about.

    Attributes:
        text: The text.
        template_ids: The shape, then every pattern and style in the text, in order of first use.
        repaired: Pairs that were given another form than their kind asks for, by reason.
        dropped: Pairs, options or questions that were lost, by reason; always empty with ``compat="fixed"``.
    """

    text: str
    template_ids: tuple[str, ...] = ()
    repaired: Mapping[str, int] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)


@runtime_checkable
class Templates(Protocol):
    """A template set. The same chains and seed give the same text on every machine."""

    @property
    def source(self) -> str:
        """``native``, or the path given."""

    @property
    def compat(self) -> Compat:
        """``fixed``, or ``reference`` to reproduce the reference implementation with its faults."""

    @property
    def digest(self) -> str:
        """Hex sha256 of the patterns; with ``compat`` it decides the text of a chain and a seed."""

    def render(self, chain: Sequence[Shot], seed: int) -> str:
        """The text of a chain."""

    def render_with_ids(self, chain: Sequence[Shot], seed: int) -> Rendered:
        """As ``render``, with the ids of what was used and the counts of what was repaired or dropped."""

    def render_rows(self, chain: Sequence[Shot], seed: int) -> tuple[Rendered, ...]:
        """The rows a chain becomes: one; with ``compat="reference"`` perhaps more, and empty ones among them."""

    def render_collection(self, chains: Sequence[Sequence[Shot]], seed: int) -> tuple[tuple[Rendered, ...], ...]:
        """The rows of chains that share a seed, chain by chain (see ``chains.collections``)."""


def main_row(rows: Sequence[Rendered]) -> int:
    """The row that stands for the chain: the first that is not empty."""
    return next((index for index, row in enumerate(rows) if row.text), 0)
