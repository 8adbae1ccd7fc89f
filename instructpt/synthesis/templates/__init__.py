"""Templates: a chain becomes one pre-training text in varied natural-language forms.

Source: arXiv 2406.14491, section 2.2 and its reference implementation for the shapes and their shares; the patterns
are this project's own, in ``instructpt/synthesis/data``, or those of a user's checkout of the reference.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from instructpt.synthesis.model import Shot
from instructpt.synthesis.profiles import Compat, check_compat
from instructpt.synthesis.templates import checkout
from instructpt.synthesis.templates.collection import CheckoutTemplates
from instructpt.synthesis.templates.lint import lint
from instructpt.synthesis.templates.patterns import PatternSet, native
from instructpt.synthesis.templates.rendered import Rendered, Templates, main_row
from instructpt.synthesis.templates.shapes import Writer

# The reference seeds entry i of a data set with i + 12345.
SEED_OFFSET = 12345

__all__ = ["SEED_OFFSET", "NativeTemplates", "Rendered", "Templates", "lint", "load", "main_row"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeTemplates:
    """The template set that ships with this package."""

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
        """The rows a chain becomes: one; with ``compat="reference"`` an empty text precedes a lone raw document."""
        rendered = self.render_with_ids(chain, seed)
        if self.compat == "reference" and len(chain) == 1 and not chain[0].pairs:
            return (Rendered(text=""), rendered)
        return (rendered,)

    def render_collection(self, chains: Sequence[Sequence[Shot]], seed: int) -> tuple[tuple[Rendered, ...], ...]:
        """The rows of chains that share a seed, each rendered on its own."""
        return tuple(self.render_rows(chain, seed) for chain in chains)


def load(source: str = "native", compat: str = "fixed") -> Templates:
    """The template set named by ``source``.

    Args:
        source: ``native``, or the path of a checkout of the reference implementation (its folder
            ``instruction_pretrain``, the whole checkout, or the pattern file itself). That file is Python and is run.
        compat: ``fixed`` or ``reference``.

    Raises:
        ConfigError: There is no such file, it is not the reference's, or ``compat`` is unknown.
    """
    known = check_compat(compat)
    if source == "native":
        return NativeTemplates(source=source, compat=known, patterns=native())
    patterns = checkout.read(source)
    if known == "fixed":
        patterns = patterns.without_losses()
    return CheckoutTemplates(source=source, compat=known, patterns=patterns)
