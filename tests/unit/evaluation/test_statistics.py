from __future__ import annotations

import numpy as np
import pytest

from instructpt.evaluation.statistics import Sample, estimate, resample, rounded, wilson


def sample(values: np.ndarray, weights: np.ndarray | None = None) -> Sample:
    values = np.atleast_2d(values).astype(float)
    return Sample(scores=values, weights=np.ones_like(values) if weights is None else np.atleast_2d(weights))


def test_the_value_is_a_ratio_of_sums_and_a_mean_over_seeds() -> None:
    one = sample(np.array([10.0, 2.0]), np.array([5.0, 1.0]))
    assert one.value() == 2.0
    two = sample(np.array([[10.0, 2.0], [4.0, 2.0]]), np.array([[5.0, 1.0], [5.0, 1.0]]))
    assert two.value() == pytest.approx(1.5)


def test_the_bootstrap_error_of_a_mean_is_the_textbook_one() -> None:
    values = np.random.default_rng(0).normal(size=400)
    got = estimate(values.mean(), resample(sample(values), seed=1), documents=400)
    assert got.stderr == pytest.approx(values.std(ddof=1) / 20, rel=0.06)
    assert got.interval is not None
    assert got.interval[0] < values.mean() < got.interval[1]


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for trial in range(200):
        values = rng.exponential(size=60)
        interval = estimate(values.mean(), resample(sample(values), seed=trial, resamples=400), documents=60).interval
        assert interval is not None
        covered += interval[0] <= 1.0 <= interval[1]
    assert 0.88 <= covered / 200 <= 0.99


def test_equal_seeds_give_equal_draws_so_models_are_paired() -> None:
    values = np.random.default_rng(3).normal(size=50)
    one, two = resample(sample(values), seed=5, stream=0), resample(sample(values + 1.0), seed=5, stream=7)
    assert np.allclose(two - one, 1.0)
    assert np.array_equal(one, resample(sample(values), seed=5))
    assert not np.array_equal(one, resample(sample(values), seed=6))


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(3).normal(size=50)
    whole = resample(sample(values), seed=5)
    monkeypatch.setattr("instructpt.evaluation.statistics._CHUNK_CELLS", 777)
    assert np.allclose(whole, resample(sample(values), seed=5))


def test_several_training_seeds_widen_the_interval() -> None:
    base = np.random.default_rng(4).normal(size=100)
    alike = sample(np.stack([base, base]))
    apart = sample(np.stack([base - 3, base + 3]))
    assert resample(apart, seed=1).std() > 5 * resample(alike, seed=1).std()


def test_one_document_gives_no_interval() -> None:
    got = estimate(1.0, resample(sample(np.array([1.0])), seed=1), documents=1)
    assert got.stderr is None
    assert got.interval is None


def test_wilson_by_known_values() -> None:
    assert wilson(0, 10) == pytest.approx((0.0, 0.27753), abs=1e-4)
    assert wilson(5, 10) == pytest.approx((0.23659, 0.76341), abs=1e-4)
    assert wilson(10, 10)[1] == pytest.approx(1.0)


def test_rounding_keeps_six_digits() -> None:
    assert rounded(1234.56789) == 1234.57
    assert rounded(0.000123456789) == 0.000123457
    assert rounded(0.0) == 0.0
    assert rounded(None) is None
