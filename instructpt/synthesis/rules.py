"""Rules that make pairs without a model: what a strategy of rules is to the writer."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Protocol

from instructpt.synthesis.model import Pair


@dataclass(frozen=True, slots=True, kw_only=True)
class MinedPair:
    """A pair, and which rule it is from.

    Attributes:
        family: What it is counted under: lower-case words joined by dashes.
        task: The rule, more finely.
        pair: The pair.
    """

    family: str
    task: str
    pair: Pair


class Mine(Protocol):
    """Makes the pairs of a document."""

    def __call__(self, document: str, seed: int, *, forbidden: Collection[str]) -> Iterable[MinedPair]:
        """The pairs of a document: a pure function of the arguments, since micro-shards are made again after a kill.

        Args:
            document: The document; tags of the profile in it are neutralised.
            seed: The spec's seed, the same for all documents.
            forbidden: Tags of the profile, which no pair should hold; where one does they are neutralised.
        """
