"""Whether a document supports an answer, by the words they share: cheap, and blind to what words mean.

It finds answers about something else. It cannot find a wrong answer made of the document's words, and it misses a true
one in other words, so a bound near 1 costs good pairs (docs/user-guides/filters.md has measured shares).
"""

from __future__ import annotations

from instructpt.corpus.text.language import function_words
from instructpt.corpus.text.words import words_of

# Answers that say no more than this have nothing that a document could hold.
_POLAR = frozenset(
    ("yes", "no", "true", "false", "maybe", "correct", "incorrect", "none", "unknown", "ja", "nein", "oui", "non", "sí",
     "sì", "não")
)  # fmt: skip


def content_words(text: str) -> list[str]:
    """Words of a text without function words and mere yes or no, each once, in order."""
    idle = function_words()
    return [word for word in dict.fromkeys(words_of(text)) if word not in idle and word not in _POLAR]


def support(answer: str, document_words: frozenset[str]) -> float:
    """Share of the answer's content words that the document has; 1 for an answer without any.

    Args:
        answer: The answer.
        document_words: All words of its document.
    """
    words = content_words(answer)
    return sum(word in document_words for word in words) / len(words) if words else 1.0
