"""MinHash signatures of texts (Broder 1997) and their bands (Leskovec et al., *Mining of Massive Datasets*, 3.4).

A signature is ``HASHES`` minima over the text's word shingles; two texts agree in one of them with a probability equal
to the Jaccard similarity *s* of their shingles. Signatures are cut into *b* bands of *r*; texts that agree in a whole
band are taken for near-duplicates: with probability ``1 - (1 - s**r)**b``. The hash functions come from fixed
constants, so that a signature is a function of the text alone.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from instructpt.corpus.text.words import Hashes, hash_text, hash_words, mix, ngram_hashes, words_of

HASHES = 128
SEED = 1
TARGET = 0.9
"""Chance with which texts of exactly the stated similarity are to be found."""

_CHUNK = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Banding:
    """How signatures are cut.

    Attributes:
        bands: Number of bands.
        rows: Minima in a band.
    """

    bands: int
    rows: int

    def probability(self, similarity: float) -> float:
        """Chance that two texts of this similarity agree in a band."""
        return float(1.0 - (1.0 - similarity**self.rows) ** self.bands)


@functools.cache
def banding(similarity: float) -> Banding:
    """The sharpest banding that finds texts of this similarity with a chance of at least ``TARGET``."""
    for rows in range(HASHES, 1, -1):
        found = Banding(bands=HASHES // rows, rows=rows)
        if found.probability(similarity) >= TARGET:
            return found
    return Banding(bands=HASHES, rows=1)


def shingles(text: str, n: int) -> Hashes:
    """Distinct hashes of a text's runs of ``n`` words, sorted; of all its words where it has fewer, none without."""
    words = words_of(text)
    return np.unique(ngram_hashes(hash_words(words), max(1, min(n, len(words)))))


def jaccard(first: Hashes, second: Hashes) -> float:
    """Similarity of two sets of shingles: shared over all; 0 where one is empty."""
    if not len(first) or not len(second):
        return 0.0
    shared = len(np.intersect1d(first, second, assume_unique=True))
    return float(shared / (len(first) + len(second) - shared))


def band_hashes(text: str, n: int, cut: Banding) -> Hashes:
    """One hash a band of a text's signature.

    Args:
        text: The text. Without a word it agrees with equal texts alone.
        n: Words in a shingle.
        cut: How the signature is cut.
    """
    found = shingles(text, n)
    if not len(found):
        found = np.array([hash_text(text)], dtype=np.uint64)
    return _banded(_signature(found), cut)


def _signature(found: Hashes) -> Hashes:
    factors, offsets = _functions()
    least = np.full(HASHES, np.iinfo(np.uint64).max, dtype=np.uint64)
    for start in range(0, len(found), _CHUNK):
        part = found[start : start + _CHUNK, np.newaxis]
        # Multiply-shift (Dietzfelbinger et al. 1997): the upper half of an odd multiple is close to uniform.
        np.minimum(least, ((part * factors + offsets) >> np.uint64(32)).min(axis=0), out=least)
    return least


def _banded(signature: Hashes, cut: Banding) -> Hashes:
    rows = signature[: cut.bands * cut.rows].reshape(cut.bands, cut.rows)
    hashes = np.arange(cut.bands, dtype=np.uint64)
    for row in range(cut.rows):
        hashes = mix(hashes * np.uint64(0x9E3779B97F4A7C15) + rows[:, row])
    return hashes


@functools.cache
def _functions() -> tuple[Any, Any]:
    draw = mix(np.arange(SEED, SEED + 2 * HASHES, dtype=np.uint64) * np.uint64(0xD1B54A32D192ED03))
    return draw[:HASHES] | np.uint64(1), draw[HASHES:]
