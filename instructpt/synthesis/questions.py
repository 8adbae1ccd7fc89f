"""Questions that were asked before: equal but for letter case, or alike in their word pairs."""

from __future__ import annotations

from collections import defaultdict

from instructpt.corpus.text.minhash import band_hashes, banding, jaccard, shingles
from instructpt.corpus.text.words import Hashes

DUPLICATE_QUESTION = "duplicate-question"
NEAR_DUPLICATE_QUESTION = "near-duplicate-question"
_SHINGLE_WORDS = 2


class AskedQuestions:
    """The questions kept so far.

    Args:
        similarity: From which Jaccard similarity of word pairs on two questions are one; None asks for equality.
        indexed: For many questions: only those are compared that MinHash bands bring together, which finds questions
            of the stated similarity with a chance of at least 0.9. Else each is compared with all.
    """

    def __init__(self, similarity: float | None = None, *, indexed: bool = False) -> None:
        self._similarity = similarity
        self._cut = banding(similarity) if indexed and similarity is not None else None
        self._exact: set[str] = set()
        self._shingles: list[Hashes] = []
        self._places: defaultdict[tuple[int, int], list[int]] = defaultdict(list)

    def reason(self, question: str) -> str | None:
        """Why the question is not to be kept, if it was asked before."""
        if _normal(question) in self._exact:
            return DUPLICATE_QUESTION
        if self._similarity is None:
            return None
        found = shingles(question, _SHINGLE_WORDS)
        alike = any(jaccard(found, self._shingles[place]) >= self._similarity for place in self._candidates(question))
        return NEAR_DUPLICATE_QUESTION if alike else None

    def add(self, question: str) -> None:
        """The question is kept."""
        self._exact.add(_normal(question))
        if self._similarity is None:
            return
        for band in self._bands(question):
            self._places[band].append(len(self._shingles))
        self._shingles.append(shingles(question, _SHINGLE_WORDS))

    def _candidates(self, question: str) -> set[int]:
        if self._cut is None:
            return set(range(len(self._shingles)))
        return {place for band in self._bands(question) for place in self._places.get(band, ())}

    def _bands(self, question: str) -> list[tuple[int, int]]:
        return [] if self._cut is None else list(enumerate(band_hashes(question, _SHINGLE_WORDS, self._cut).tolist()))


def _normal(question: str) -> str:
    return question.strip().lower()
