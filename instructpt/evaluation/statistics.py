"""Values, standard errors and intervals by the bootstrap over documents; pure, seeded.

Items of one document (its questions, its windows) are not independent, so documents are what is drawn: a cluster
bootstrap with percentile intervals (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 6, 8, 13).
All models of a task are resampled with the same draws, so that differences between them are paired.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RESAMPLES = 2000
LEVEL = 0.95
_CHUNK_CELLS = 4_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What one model scored, summed by document; ``S`` training seeds, ``D`` documents.

    Attributes:
        scores: (S, D) sums of the items' scores.
        weights: (S, D) sums of the items' weights, above 0; a value is the sum of scores over the sum of weights.
    """

    scores: Floats
    weights: Floats

    @property
    def documents(self) -> int:
        """``D``."""
        return int(self.scores.shape[1])

    def by_seed(self) -> Floats:
        """(S,) value of each training seed."""
        ratio: Floats = self.scores.sum(axis=1) / self.weights.sum(axis=1)
        return ratio

    def value(self) -> float:
        """Mean over the training seeds."""
        return float(self.by_seed().mean())


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value and how sure it is.

    Attributes:
        value: Computed on all documents.
        stderr: Standard deviation over the resamples; ``None`` where a single document allows none.
        interval: 95 % percentile interval; ``None`` likewise.
    """

    value: float
    stderr: float | None
    interval: tuple[float, float] | None


def resample(sample: Sample, *, seed: int, stream: int = 0, resamples: int = RESAMPLES) -> Floats:
    """(resamples,) values of ``sample`` on documents drawn with replacement.

    Equal ``seed`` and number of documents give equal draws, whatever the model: that pairs the models. With two or more
    training seeds those are drawn too (from ``stream``, one for each model): then the interval also covers their luck.
    """
    draws = np.random.default_rng([seed, sample.documents])
    even = np.full(sample.documents, 1.0 / sample.documents)
    chunk = max(1, _CHUNK_CELLS // sample.documents)
    parts: list[Floats] = []
    for start in range(0, resamples, chunk):
        times = draws.multinomial(sample.documents, even, size=min(chunk, resamples - start)).astype(np.float64)
        parts.append((times @ sample.scores.T) / (times @ sample.weights.T))
    values = np.concatenate(parts)
    num_seeds = values.shape[1]
    if num_seeds > 1:
        which = np.random.default_rng([seed, sample.documents, 1 + stream]).integers(0, num_seeds, size=values.shape)
        values = np.take_along_axis(values, which, axis=1)
    means: Floats = values.mean(axis=1)
    return means


def estimate(value: float, resamples: Floats, *, documents: int) -> Estimate:
    """A value with the spread of its resamples."""
    if documents < 2:
        return Estimate(value=value, stderr=None, interval=None)
    tail = (1.0 - LEVEL) / 2.0
    low, high = np.quantile(resamples, [tail, 1.0 - tail])
    return Estimate(value=value, stderr=float(resamples.std(ddof=1)), interval=(float(low), float(high)))


def wilson(successes: float, trials: int) -> tuple[float, float]:
    """95 % score interval of a share, which is not empty at 0 and 1 as the bootstrap's is (Wilson, JASA 22, 1927)."""
    z = 1.959963984540054
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)) / (1 + z * z / trials)
    return max(0.0, centre - half), min(1.0, centre + half)


def rounded(value: float | None, digits: int = 6) -> float | None:
    """To ``digits`` significant digits, so that files do not hold noise of the last bits."""
    if value is None or value == 0.0 or not math.isfinite(value):
        return value
    return round(value, digits - 1 - math.floor(math.log10(abs(value))))


def rounded_pair(pair: Sequence[float] | None) -> list[float | None] | None:
    """Both ends of an interval, rounded."""
    return None if pair is None else [rounded(pair[0]), rounded(pair[1])]
