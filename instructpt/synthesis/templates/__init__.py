"""Templates: a chain becomes one pre-training text in varied natural-language forms.

Source: arXiv 2406.14491, section 2.2 and its reference implementation for the shapes and their shares; the patterns
are this project's own, in ``instructpt/synthesis/data``.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from instructpt.errors import ConfigError
from instructpt.synthesis.model import Shot
from instructpt.synthesis.profiles import Compat, check_compat
from instructpt.synthesis.templates.lint import lint
from instructpt.synthesis.templates.patterns import PatternSet, native
from instructpt.synthesis.templates.shapes import Writer

# The reference seeds entry i of a data set with i + 12345.
SEED_OFFSET = 12345

__all__ = ["SEED_OFFSET", "Rendered", "Templates", "lint", "load"]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Templates:
    """A template set. The same chain and seed give the same text on every machine."""

    source: str
    compat: Compat
    patterns: PatternSet

    @property
    def digest(self) -> str:
        """Hex sha256 of the patterns; with ``compat`` it decides the text of a chain and a seed."""
        return self.patterns.digest

    def render(self, chain: Sequence[Shot], seed: int) -> str:
        """The text of a chain; every document, question and answer stands in it (options may go by their label).

        A chain without any pair is its documents, joined by an empty line.

        Args:
            chain: The shots in order.
            seed: The only source of choice; the reference uses the entry's index + ``SEED_OFFSET``.
        """
        return self.render_with_ids(chain, seed).text

    def render_with_ids(self, chain: Sequence[Shot], seed: int) -> Rendered:
        """As ``render``, with the ids of what was used and the counts of what was repaired or dropped."""
        writer = Writer(self.patterns, random.Random(seed), reference=self.compat == "reference")
        text = writer.write(chain)
        return Rendered(text=text, template_ids=tuple(writer.used), repaired=writer.repaired, dropped=writer.dropped)

    def render_rows(self, chain: Sequence[Shot], seed: int) -> tuple[Rendered, ...]:
        """The rows a chain becomes: one; with ``compat="reference"`` a lone raw document adds an empty text."""
        rendered = self.render_with_ids(chain, seed)
        if self.compat == "reference" and len(chain) == 1 and not chain[0].pairs:
            return (rendered, Rendered(text=""))
        return (rendered,)


def load(source: str = "native", compat: str = "fixed") -> Templates:
    """The template set named by ``source``.

    Raises:
        ConfigError: ``source`` is not ``native``, or ``compat`` is unknown.
    """
    known = check_compat(compat)
    if source != "native":
        raise ConfigError(
            "this version holds one template set and reads none from a path",
            field="templates",
            value=source,
            fix="use templates: native",
        )
    return Templates(source=source, compat=known, patterns=native())
