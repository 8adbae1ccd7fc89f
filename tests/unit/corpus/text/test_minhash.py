from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructpt.corpus.text.minhash import TARGET, band_hashes, banding, jaccard, shingles
from instructpt.corpus.text.words import hash_words, ngram_hashes, words_of

CUT = banding(0.8)


def related(rng: random.Random, similarity: float) -> tuple[str, str]:
    """Two texts whose sets of single words have exactly this Jaccard similarity, up to rounding."""
    total = 400
    shared = round(total * similarity)
    words = [f"w{rng.randrange(10**9)}x{i}" for i in range(total)]
    own = (total - shared) // 2
    first, second = words[: shared + own], words[:shared] + words[shared + own :]
    rng.shuffle(second)
    return " ".join(first), " ".join(second)


def found(similarity: float, trials: int, cut=CUT) -> float:
    rng = random.Random(similarity)
    hits = 0
    for _ in range(trials):
        first, second = related(rng, similarity)
        hits += bool(np.any(band_hashes(first, 1, cut) == band_hashes(second, 1, cut)))
    return hits / trials


@pytest.mark.parametrize("similarity", [0.5, 0.6, 0.7, 0.8, 0.9, 0.95])
def test_the_banding_finds_what_it_states(similarity: float) -> None:
    cut = banding(similarity)
    assert cut.bands * cut.rows <= 128
    assert cut.probability(similarity) >= TARGET
    assert found(similarity, 200, cut) == pytest.approx(cut.probability(similarity), abs=0.08)


@pytest.mark.parametrize("similarity", [0.3, 0.6])
def test_what_is_less_alike_is_found_as_seldom_as_predicted(similarity: float) -> None:
    assert found(similarity, 200) == pytest.approx(CUT.probability(similarity), abs=0.08)


def test_bands_are_a_function_of_the_text() -> None:
    text = "the quick brown fox jumps over the lazy dog"
    code = (
        "from instructpt.corpus.text.minhash import band_hashes, banding\n"
        f"print(band_hashes({text!r}, 5, banding(0.8)).tolist())"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == str(band_hashes(text, 5, CUT).tolist())
    assert band_hashes(text, 5, CUT)[0] == 12313032538338421149, "bands stand in files: they must not change"


@given(st.text(max_size=60))
def test_equal_texts_agree_in_every_band_and_case_does_not_matter(text: str) -> None:
    bands = band_hashes(text, 5, CUT)
    assert len(bands) == CUT.bands
    assert np.array_equal(bands, band_hashes(text, 5, CUT))


def test_texts_without_words_agree_with_equal_ones_alone() -> None:
    assert not np.any(band_hashes("!!!", 5, CUT) == band_hashes("???", 5, CUT))
    assert np.array_equal(band_hashes("!!!", 5, CUT), band_hashes("!!!", 5, CUT))


def test_long_texts_are_hashed_in_parts() -> None:
    words = [f"w{i}" for i in range(10_000)]
    assert np.array_equal(band_hashes(" ".join(words), 1, CUT), band_hashes(" ".join(reversed(words)), 1, CUT))


def test_jaccard() -> None:
    assert jaccard(shingles("a b c", 1), shingles("b c d", 1)) == 0.5
    assert jaccard(shingles("", 1), shingles("", 1)) == 0.0
    assert jaccard(shingles("A, b!", 2), shingles("a b", 2)) == 1.0


def test_words() -> None:
    assert words_of("Don't stop_me 3.5 Straße") == ["don", "t", "stop", "me", "3", "5", "strasse"]
    assert words_of("東京タ the") == ["東", "京", "タ", "the"]


def test_ngrams() -> None:
    hashes = hash_words(["a", "b", "a", "b"])
    pairs = ngram_hashes(hashes, 2)
    assert pairs[0] == pairs[2] != pairs[1]
    assert len(ngram_hashes(hashes, 5)) == 0
