"""Paired statistics, against scipy's and against what is known."""

import numpy as np
import pytest

from tokengraph.evaluate.statistics import compare, interval, mcnemar, mean_of, resample


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (3, 3), (10, 2), (2, 10), (900, 1000), (40_000, 41_000)])
def test_mcnemar_is_the_exact_binomial_test(b, c):
    stats = pytest.importorskip("scipy.stats")
    dense = np.array([True] * b + [False] * c + [True, False])
    other = np.array([False] * b + [True] * c + [True, False])
    expected = stats.binomtest(min(b, c), b + c).pvalue if b + c else 1.0
    assert mcnemar(dense, other) == pytest.approx(expected, rel=1e-6)


def test_resample_draws_every_sample_whole_and_the_same_each_time():
    draws = resample(7, 50, seed=3)
    assert draws.shape == (50, 7) and (draws.sum(1) == 7).all()
    assert (draws == resample(7, 50, seed=3)).all() and (draws != resample(7, 50, seed=4)).any()
    assert resample(1, 10, 0).tolist() == [[1]] * 10


def test_interval_is_that_of_the_mean():
    values = (np.arange(400) < 100).astype(float)  # a share of 0.25 of 400: deviation 0.0217
    low, high = interval(mean_of(values), resample(400, 2000, 0))
    assert low == pytest.approx(0.25 - 1.96 * 0.0217, abs=0.006) and high == pytest.approx(
        0.25 + 1.96 * 0.0217, abs=0.006
    )


def test_compare_is_paired():
    right = np.arange(200) % 4 > 0  # 75 %; the other loses two images of them
    other = right.copy()
    other[[1, 2]] = False
    found = compare(mean_of(right), mean_of(other), resample(200, 1000, 0), p=0.5)
    assert found.value == pytest.approx(-0.01) and found.p == 0.5
    assert -0.03 < found.low < -0.01 < found.high <= 0  # unpaired it would reach from -0.09 to 0.07
    same = compare(mean_of(right), mean_of(right), resample(200, 100, 0))
    assert (same.value, same.low, same.high, same.differs) == (0, 0, 0, False)
