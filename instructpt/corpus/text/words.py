"""Words of a text and 64-bit hashes of its word n-grams; the same on every machine and in every process."""

from __future__ import annotations

import functools
import hashlib
import re
from typing import Any

import numpy as np

# Kana and Han are written without spaces: each character counts as a word.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_BASE = np.uint64(0x9E3779B97F4A7C15)

Hashes = Any
"""A numpy array of ``uint64``."""


def words_of(text: str) -> list[str]:
    """Words of a text in order, letter case, punctuation and underscores left out."""
    return _WORD.findall(text.casefold())


@functools.lru_cache(maxsize=1 << 17)
def _hash_of(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def hash_text(text: str) -> int:
    """64 bits of a hash of the text as it is."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def hash_words(words: list[str]) -> Hashes:
    """A hash of every word, in order."""
    return np.fromiter((_hash_of(word) for word in words), dtype=np.uint64, count=len(words))


def ngram_hashes(hashes: Hashes, n: int) -> Hashes:
    """A hash of every run of ``n`` words, in order; none where there are fewer words.

    Args:
        hashes: From :func:`hash_words`.
        n: Words in a run.
    """
    count = max(0, len(hashes) - n + 1)
    rolled = np.zeros(count, dtype=np.uint64)
    for offset in range(n):
        rolled = rolled * _BASE + hashes[offset : offset + count]
    return mix(rolled)


def mix(values: Hashes) -> Hashes:
    """Spread every bit of 64-bit values over all others (the finalizer of SplitMix64, Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
