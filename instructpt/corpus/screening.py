"""Screening of documents while they are inspected: a reason to leave one out, and a row for what comes later.

What can be said of a document alone (length, repetition, language, contamination) is said here. Duplicates are known
only when every document has been seen: each leaves hashes in its row, one of its text and one for each band of its
MinHash signature, and :mod:`instructpt.corpus.filtered` compares them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from instructpt.api.v1alpha1.corpusfilters import CorpusFilters
from instructpt.api.v1alpha1.synthesisjob import SplitName
from instructpt.corpus.contamination import EvaluationNgrams
from instructpt.corpus.text.language import UNKNOWN, language_of
from instructpt.corpus.text.minhash import Banding, band_hashes, banding
from instructpt.corpus.text.repetition import repetition
from instructpt.corpus.text.words import hash_text

REASONS = (
    "kept",
    "too-short",
    "too-long",
    "repetition",
    "language",
    "contaminated",
    "duplicate",
    "near-duplicate",
)
"""By their number in files, which must not change. A document has the first reason that holds, in this order."""

KEPT = 0
DUPLICATE = REASONS.index("duplicate")
NEAR_DUPLICATE = REASONS.index("near-duplicate")
SPLITS: tuple[SplitName, ...] = ("tune", "train", "heldOut")

SHINGLE_WORDS = 5
_PENDING = 1024


def cut_of(filters: CorpusFilters) -> Banding | None:
    """How signatures are cut; None where documents are not compared for likeness."""
    return banding(filters.similarity) if filters.deduplicate == "minhash" else None


def row_type(filters: CorpusFilters) -> Any:
    """The row of a document: reason, part, size, and the hashes that find its duplicates."""
    cut = cut_of(filters)
    hashes = 0 if filters.deduplicate == "none" else 1 + (cut.bands if cut else 0)
    return np.dtype(
        [
            ("reason", "u1"), ("split", "u1"), ("bytes", "<u4"), ("words", "<u4"), ("tokens", "<u4"),
            ("hashes", "<u8", (hashes,)),
        ]
    )  # fmt: skip


class Screen:
    """Judges documents one at a time.

    Args:
        filters: Of the spec.
        evaluation: N-grams of evaluation sets, where ``filters.decontaminate`` asks for them.
    """

    def __init__(self, filters: CorpusFilters, evaluation: EvaluationNgrams | None = None) -> None:
        self.filters = filters
        self._evaluation = evaluation
        self._cut = cut_of(filters)

    def reason(self, text: str, words: int) -> int:
        """Number of the first reason to leave the document out, or ``KEPT``."""
        return REASONS.index(self._reason(text, words))

    def _reason(self, text: str, words: int) -> str:
        filters = self.filters
        if filters.min_words is not None and words < filters.min_words:
            return "too-short"
        if filters.max_words is not None and words > filters.max_words:
            return "too-long"
        if filters.max_repetition is not None and repetition(text) > filters.max_repetition:
            return "repetition"
        if filters.languages and language_of(text) not in (*filters.languages, UNKNOWN):
            return "language"
        if self._evaluation is not None and self._evaluation.contaminate(text):
            return "contaminated"
        return "kept"

    def hashes(self, text: str) -> list[int]:
        """What the document's duplicates share with it, in the order of :func:`row_type`."""
        if self.filters.deduplicate == "none":
            return []
        bands = [] if self._cut is None else band_hashes(text, SHINGLE_WORDS, self._cut).tolist()
        return [hash_text(text), *bands]


class ScreenWriter:
    """Writes the rows of a unit's documents, in order, into a local file.

    Args:
        path: The file; replaced.
        screen: Judges the documents.
        counted: Whether the number of tokens is told by :meth:`tokens`, later than the documents.
    """

    def __init__(self, path: Path, screen: Screen, *, counted: bool) -> None:
        self._file: BinaryIO = path.open("wb")
        self._screen = screen
        self._type = row_type(screen.filters)
        self._counted = counted
        self._pending: list[tuple[Any, ...]] = []
        self.dropped: dict[str, int] = {}

    def __enter__(self) -> ScreenWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, text: str, *, size: int, words: int, split: SplitName) -> None:
        """One document."""
        reason = self._screen.reason(text, words)
        # One that is left out already takes part in no comparison: its duplicate may stay.
        hashes = self._screen.hashes(text) if reason == KEPT else [0] * self._type["hashes"].shape[0]
        if reason != KEPT:
            name = REASONS[reason]
            self.dropped[name] = self.dropped.get(name, 0) + 1
        self._pending.append((reason, SPLITS.index(split), size, words, 0, hashes))
        if not self._counted and len(self._pending) >= _PENDING:
            self._flush()

    def tokens(self, counts: list[int]) -> None:
        """Tokens of the documents since the last call."""
        assert len(counts) == len(self._pending)
        self._pending = [(*row[:4], tokens, row[5]) for row, tokens in zip(self._pending, counts, strict=True)]
        self._flush()

    def close(self) -> None:
        """Write the rest and end the file."""
        self._flush()
        self._file.close()

    def _flush(self) -> None:
        self._file.write(np.array(self._pending, dtype=self._type).tobytes())
        self._pending = []
