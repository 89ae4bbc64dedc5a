"""Predicts what a schedule loses: a loss for each block's step, fitted to measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

# Of the share that a step removes: above 1, many small steps lose less than one.
POWERS = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0)
DENSITIES = (0.0, 0.5, 1.0, 1.5, 2.0)  # of the tokens before the step: fewer tokens are less alike
SHARE = 0.1  # merging is responsible for at least this share of a loss
LEAST = 1e-7  # losses below this are rounding
ROUNDS = 200  # of multiplicative updates
SMOOTHED = 40  # rounds between two smoothings: neighbouring blocks differ less than single measurements say
USELESS = 1e3  # loss of a strategy that removes no token: never chosen
CUT = 0.1  # weight of a single cut beside schedules of several steps, which are what curves predict


@dataclass
class Row:
    """One measured schedule.

    Args:
        tokens: Patch tokens before the first block and after each.
        loss: Measured loss.
        base: Loss of its resolution alone.
    """

    tokens: tuple[int, ...]
    loss: float
    base: float

    @property
    def merging(self) -> float:
        """The part of the loss that merging is responsible for; merging on a smaller image may even repair a little."""
        return max(self.loss - self.base, SHARE * self.loss, LEAST)


@dataclass
class Curve:
    r"""The loss of merging, for one strategy with its options.

    .. math:: L = L_{size} + \sum_l a_l \left(\frac{n_{l-1} - n_l}{n_{l-1}}\right)^q \left(\frac{n_{l-1}}{N}\right)^{-t}

    Errors of single steps add: cosines and KL are squares of small errors, and these hardly correlate.

    Args:
        weights: :math:`a_l` of every block, ``[L]``.
        patches: N, patch tokens of the model's own input.
        power: q.
        density: t.
        rows: Measurements.
    """

    weights: np.ndarray
    patches: int
    power: float = 1.75
    density: float = 1.0
    rows: list[Row] = field(default_factory=list)

    @classmethod
    def of_cuts(cls, cuts: dict[int, Row], depth: int, patches: int) -> Curve:
        """Makes a curve from single cuts after a number of blocks; interpolates the blocks between them."""
        curve = cls(np.ones(depth), patches, rows=list(cuts.values()))
        found = {layer: row.merging for layer, row in cuts.items()}
        steps = {layer: curve._features(row.tokens) for layer, row in cuts.items()}
        cut = [layer for layer in sorted(found) if steps[layer].any()]  # the others removed no token
        if not cut:
            curve.weights = np.full(depth, USELESS)
            return curve
        logs = [np.log(found[layer] / steps[layer].max()) for layer in cut]
        layers = [int(steps[layer].argmax()) + 1 for layer in cut]  # before a block tokens leave one block earlier
        curve.weights = np.exp(np.interp(np.arange(1, depth + 1), layers, logs))
        return curve

    def copy(self, factor: float = 1.0) -> Curve:
        """Returns a copy without measurements whose losses are ``factor`` times as large."""
        return Curve(self.weights * factor, self.patches, self.power, self.density)

    def predict(self, tokens: Sequence[int]) -> float:
        """Predicts the loss of a schedule, without that of its resolution."""
        return float(self._features(tokens) @ self.weights)

    def steps(self, levels: np.ndarray) -> np.ndarray:
        """Returns the loss of a step from ``levels[i]`` to ``levels[j]`` tokens in each block, ``[L, K, K]``.

        Args:
            levels: K token counts, falling.
        """
        before, after = levels[:, None].astype(float), levels[None, :].astype(float)
        share = np.clip((before - after) / before, 0, None)
        step = share**self.power * (before / self.patches) ** -self.density
        return self.weights[:, None, None] * step

    def add(self, row: Row) -> None:
        """Adds a measurement and fits again."""
        self.rows.append(row)
        self.fit()

    def fit(self) -> None:
        """Fits weights and powers to the measurements by relative errors; good schedules count most.

        Weights stay positive and near the old ones where measurements do not decide (multiplicative updates).
        Cost: milliseconds.
        """
        if len(self.rows) < 2:
            return
        wanted = np.array([row.merging for row in self.rows])
        count = self._counts(wanted)
        best = None
        start = self.weights.copy(), self.power, self.density
        for power in POWERS:
            for density in DENSITIES:
                weights, error = self._fitted(start, power, density, wanted, count)
                if best is None or error < best[0] * 0.999:
                    best = error, weights, power, density
        assert best is not None
        _, self.weights, self.power, self.density = best

    def _counts(self, wanted: np.ndarray) -> np.ndarray:
        """Returns the weight of each measurement: most for schedules of several steps that lose little."""
        single = np.array([_steps(row.tokens) == 1 for row in self.rows])
        if single.all():
            return np.ones(len(wanted))
        far = np.abs(np.log(wanted / wanted[~single].min()))
        return np.where(single, CUT, 1.0) * np.exp(-far) + 0.01

    def _fitted(
        self,
        start: tuple[np.ndarray, float, float],
        power: float,
        density: float,
        wanted: np.ndarray,
        count: np.ndarray,
    ) -> tuple[np.ndarray, float]:
        self.power, self.density = power, density
        rows = np.stack([self._features(row.tokens) for row in self.rows]) / wanted[:, None]
        weights = start[0].copy()
        total = rows @ weights
        weights *= np.exp(-np.average(np.log(np.maximum(total, 1e-12)), weights=count))  # the scale first
        pull, spread = rows.T @ count, rows.T @ (rows * count[:, None])
        for number in range(ROUNDS):
            weights *= (pull + 1e-12) / (spread @ weights + 1e-12)
            if number % SMOOTHED == SMOOTHED - 1:
                weights = _smooth(weights)
        weights *= np.exp(-np.average(np.log(np.maximum(rows @ weights, 1e-12)), weights=count))
        off = np.log(np.maximum(rows @ weights, 1e-12))
        return weights, float(np.average(off**2, weights=count))

    def _features(self, tokens: Sequence[int]) -> np.ndarray:
        """Returns the factor of every weight in the loss of a schedule, ``[L]``."""
        before, after = np.array(tokens[:-1], float), np.array(tokens[1:], float)
        share = np.clip((before - after) / np.maximum(before, 1), 0, None)
        return share**self.power * (np.maximum(before, 1) / self.patches) ** -self.density


def _smooth(weights: np.ndarray) -> np.ndarray:
    """Returns the geometric mean of each weight with its neighbours' (1 : 2 : 1); a steady slope stays as it is."""
    if len(weights) < 3:
        return weights
    logs = np.pad(np.log(np.maximum(weights, 1e-12)), 1, mode="reflect", reflect_type="odd")
    return np.exp((logs[:-2] + 2 * logs[1:-1] + logs[2:]) / 4)


def _steps(tokens: Sequence[int]) -> int:
    return sum(b < a for a, b in zip(tokens[:-1], tokens[1:], strict=True))
