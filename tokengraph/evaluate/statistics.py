"""Paired comparison of two settings on the same images: bootstrap intervals and McNemar's exact test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import exp, lgamma, log

import numpy as np

LEVEL = 0.95
BLOCK = 4_000_000  # weights in memory at a time


@dataclass(frozen=True)
class Difference:
    """A setting's figure minus the dense model's, over the same images.

    Args:
        value: The difference.
        low: Lower end of its 95 % interval, by paired bootstrap over images.
        high: Upper end.
        p: McNemar's exact two-sided p-value, for figures that count right answers; ``None`` for others.
    """

    value: float
    low: float
    high: float
    p: float | None = None

    @property
    def differs(self) -> bool:
        """True if the interval excludes 0."""
        return self.low > 0 or self.high < 0


Statistic = Callable[[np.ndarray], np.ndarray]


def resample(count: int, times: int, seed: int) -> np.ndarray:
    """Returns how often each of ``times`` bootstrap samples draws each of ``count`` images, ``[times, count]``.

    A byte is enough: fewer than 256 images cannot exceed it, and with more no image is drawn that often.
    """
    generator = np.random.default_rng(seed)
    rows = (np.bincount(generator.integers(count, size=count), minlength=count) for _ in range(times))
    return np.stack([row.clip(max=255).astype(np.uint8) for row in rows])


def interval(statistic: Statistic, draws: np.ndarray) -> tuple[float, float]:
    """Returns the percentile interval of a statistic of weights ``[R, N] -> [R]`` over bootstrap samples."""
    block = max(1, BLOCK // draws.shape[1])
    parts = [statistic(draws[i : i + block].astype(np.float64)) for i in range(0, len(draws), block)]
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(np.concatenate(parts), [tail, 1 - tail])
    return float(low), float(high)


def mean_of(values: np.ndarray) -> Statistic:
    """Returns the weighted mean of one number an image, as a statistic."""
    numbers = np.asarray(values, dtype=np.float64)
    return lambda weights: weights @ numbers / weights.sum(axis=-1)


def compare(dense: Statistic, other: Statistic, draws: np.ndarray, p: float | None = None) -> Difference:
    """Returns the difference of a statistic between two settings over the same bootstrap samples."""
    once = np.ones((1, draws.shape[1]))
    low, high = interval(lambda w: other(w) - dense(w), draws)
    return Difference(float((other(once) - dense(once))[0]), low, high, p)


def mcnemar(dense: np.ndarray, other: np.ndarray) -> float:
    r"""Returns McNemar's exact two-sided p-value for two settings' correct answers on the same images.

    .. math:: p = \min\Big(1, 2 \sum_{i=0}^{\min(b, c)} \binom{b + c}{i} 2^{-(b + c)}\Big)

    with b images that only the dense model answers correctly and c that only the other does.

    Args:
        dense: True where the dense model is correct, ``[N]`` bool.
        other: True where the other setting is correct, ``[N]`` bool.

    Example:
        >>> round(mcnemar(np.array([1, 1, 1, 1, 1, 1]) > 0, np.array([0, 0, 0, 0, 0, 0]) > 0), 5)
        0.03125
    """
    b, c = int((dense & ~other).sum()), int((other & ~dense).sum())
    n, few = b + c, min(b, c)
    terms = (lgamma(n + 1) - lgamma(i + 1) - lgamma(n - i + 1) - n * log(2) for i in range(few + 1))
    return min(1.0, 2 * sum(exp(t) for t in terms)) if n else 1.0
