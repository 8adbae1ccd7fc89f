"""The end of a synthesis that yields nothing: seen early, before a whole corpus was spent on it."""

from __future__ import annotations

from instructpt.errors import ConfigError
from instructpt.synthesis.writers import Outcome

ENOUGH = 5000
"""Completions without a single pair after which a worker leaves. The end of the stage looks at all of them."""
_EXAMPLES = 3
_CHARACTERS = 200


class FruitlessGuard:
    """Watches a worker's documents until the first pair.

    Args:
        profile: Name of the profile, for the message.
        enough: See :data:`ENOUGH`.
    """

    def __init__(self, profile: str, enough: int = ENOUGH) -> None:
        self._profile = profile
        self._enough = enough
        self._completions = 0
        self._examples: list[str] = []
        self._has_pairs = False

    def document(self, outcome: Outcome) -> None:
        """Take in what became of a document.

        Raises:
            ConfigError: None of so many completions held a pair: the model or the profile is the wrong one.
        """
        if self._has_pairs or not outcome.completion_tokens:
            return
        self._has_pairs = bool(outcome.pairs)
        self._completions += 1
        if len(self._examples) < _EXAMPLES:
            self._examples.append(outcome.completion[:_CHARACTERS])
        if not self._has_pairs and self._completions >= self._enough:
            shown = "; ".join(repr(example) for example in self._examples)
            raise ConfigError(
                f"no pair in its first {self._completions} completions (parse rate 0 %) under profile "
                f"{self._profile}: {shown}",
                field="synthesizer.model",
                fix="use a model tuned for this profile, the profile it was tuned for, or wider filters",
            )
