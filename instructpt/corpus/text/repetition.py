"""How much of a text is said again: repeated word runs and repeated lines.

After the rules for repetitious documents of Gopher (Rae et al. 2021, arXiv 2112.11446, appendix A.1.1), which look at
duplicate lines and duplicate n-grams; here as one number.
"""

from __future__ import annotations

import numpy as np

from instructpt.corpus.text.words import hash_words, ngram_hashes, words_of

RUN_WORDS = 5


def repetition(text: str) -> float:
    """Share of a text that repeats what it said before, from 0 to 1.

    The larger of two shares: of the words, those that stand in a run of five words seen earlier; of the characters
    (white space aside), those in lines seen earlier.
    """
    return max(_repeated_runs(text), _repeated_lines(text))


def _repeated_runs(text: str) -> float:
    words = words_of(text)
    runs = ngram_hashes(hash_words(words), RUN_WORDS)
    if len(runs) < 2:
        return 0.0
    again = np.ones(len(runs), dtype=bool)
    again[np.unique(runs, return_index=True)[1]] = False
    steps = np.zeros(len(words) + 1, dtype=np.int64)
    starts = np.flatnonzero(again)
    np.add.at(steps, starts, 1)
    np.add.at(steps, starts + RUN_WORDS, -1)
    return float(np.count_nonzero(np.cumsum(steps[:-1])) / len(words))


def _repeated_lines(text: str) -> float:
    seen: set[str] = set()
    total = repeated = 0
    for line in text.splitlines():
        stripped = line.strip()
        size = len("".join(stripped.split()))
        total += size
        if stripped in seen:
            repeated += size
        seen.add(stripped)
    return repeated / total if total else 0.0
