"""What a planner chooses from: input sizes, token counts and their costs, and the budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tokengraph.evaluate.costs import Anatomy, multiply_adds
from tokengraph.planning.clock import Clock
from tokengraph.planning.facts import Target
from tokengraph.planning.family import Family
from tokengraph.planning.search import allowed, filled, levels_of, solve, solve_once

SIDES = 9  # input sizes that are tried at most
SMALLEST = 0.4  # of the model's own side
HALVINGS = 40  # of the scale of a shape
SLACK = 0.9  # a smaller image is tried down to this share of the budget's cost


@dataclass(frozen=True)
class Budget:
    """A budget.

    Args:
        kind: ``"cost"``, ``"speedup"``, ``"time"`` or ``"tokens"``.
        value: As the user gave it.
        tokens: Patch tokens after the last block at most, for ``"tokens"``.
    """

    kind: str
    value: float
    tokens: int | None = None

    @property
    def timed(self) -> bool:
        """True if it is about time."""
        return self.kind in ("speedup", "time")


@dataclass
class Space:
    """The choices for one model and budget.

    Args:
        body: The model's anatomy.
        target: The model.
        budget: The budget.
        pixels: Pixels of a patch; 0 if the input size is fixed.
        clock: The model's time, for budgets of time.
        steps: Milliseconds of a strategy's step, by family.
        pace: Measured over predicted time, by family.
    """

    body: Anatomy
    target: Target
    budget: Budget
    pixels: int = 0
    clock: Clock | None = None
    steps: dict[str, float] = field(default_factory=dict)
    pace: dict[str, float] = field(default_factory=dict)
    _matrices: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)

    @property
    def whole(self) -> float:
        """Multiply-adds of the plain model."""
        return multiply_adds(self.body, [self.target.patches] * (self.body.depth + 1))[0]

    def share(self, tokens: Sequence[float], family: Family | None) -> float:
        """Returns the cost of a schedule as a share of the plain model's."""
        return multiply_adds(self.body, tokens, None if family is None else family.select)[0] / self.whole

    def spent(self, tokens: Sequence[int], family: Family | None) -> float:
        """Returns the part of the budget that a schedule spends: a share of multiply-adds, or milliseconds."""
        share = self.share(tokens, family)
        if self.clock is None:
            return share
        falls = sum(b < a for a, b in zip(tokens[:-1], tokens[1:], strict=True))
        step, pace = (
            (0.0, self.pace.get("", 1.0))
            if family is None
            else (self._step_time(family), self.pace.get(family.pair, 1.0))
        )
        return pace * (self.clock.fixed + self.clock.rate * share + step * falls)

    def _step_time(self, family: Family) -> float:
        """Returns the milliseconds of a step; of a composition the longer ones."""
        names = [family.name] if family.parts is None else [family.parts[0].name, family.parts[2].name]
        return max(self.steps.get(name, 0.0) for name in names)

    @property
    def limit(self) -> float:
        """Returns the most that :meth:`spent` may be."""
        if self.budget.kind == "cost":
            return self.budget.value
        if self.budget.kind == "tokens":
            return math.inf
        assert self.clock is not None
        return self.budget.value if self.budget.kind == "time" else self.clock.plain / self.budget.value

    def fits(self, tokens: Sequence[float], family: Family | None) -> bool:
        """Returns whether a schedule is within the budget."""
        if self.budget.tokens is not None:
            return tokens[-1] <= self.budget.tokens
        return self.spent([round(n) for n in tokens], family) <= self.limit * (1 + 1e-9)

    def sides(self) -> list[int]:
        """Returns the numbers of patches along a side that are worth trying, falling, the model's own first."""
        own = self.target.side
        if not self.pixels or not own:
            return [own]
        tried = [own]
        for side in range(own - 1, max(1, math.ceil(SMALLEST * own)) - 1, -1):
            alone = [side * side] * (self.target.depth + 1)
            if self.budget.tokens is not None and side * side < self.budget.tokens:
                break
            small = self.budget.tokens is None and self.spent(alone, None) < SLACK * self.limit
            if small and self.fits(self.alone(tried[-1]), None):
                break
            tried.append(side)
            if small:  # the first one that fits by itself
                break
        picked = np.unique(np.linspace(0, len(tried) - 1, min(SIDES, len(tried))).round().astype(int))
        return [tried[i] for i in picked]

    def resolution(self, side: int) -> int | None:
        """Returns the pixels of a side; ``None`` for the model's own size."""
        return None if side == self.target.side else side * self.pixels

    def patches(self, side: int) -> int:
        """Returns the patch tokens of an input size."""
        return self.target.patches if side == self.target.side else side * side

    def alone(self, side: int) -> list[int]:
        """Returns the schedule of an input size without a strategy."""
        return [self.patches(side)] * (self.target.depth + 1)

    def best(self, losses: np.ndarray, levels: np.ndarray, family: Family, side: int) -> list[int] | None:
        """Returns the schedule of the least loss within the budget; ``None`` if none fits.

        Args:
            losses: Of a step in each block, ``[L, K, K]``.
            levels: K token counts, falling.
            family: The strategy.
            side: Patches along a side.
        """
        if self.budget.tokens is None and self.fits(self.alone(side), None):
            return self.alone(side)
        can, costs = self._steps(levels, family, side)
        last, limit = None, self.limit
        if self.budget.tokens is not None:
            below = np.flatnonzero(levels <= self.budget.tokens)
            if not len(below):
                return None
            last, limit = int(below[0]), math.inf
        elif self.clock is not None:
            pace = self.pace.get(family.pair, 1.0)
            limit, costs = limit / pace - self.clock.fixed, self.clock.rate * costs
            costs = costs + self._step_time(family) * (levels[None, :] < levels[:, None])
        path = (solve_once if family.once else solve)(losses, costs, limit, can, last)
        if path is None:
            return None
        tokens = [int(levels[i]) for i in path]
        if self.budget.tokens is not None:
            return tokens
        return filled(tokens, lambda t: self.spent(t, family), self.limit, family.fewest)

    def shaped(self, family: Family, side: int, weights: Sequence[float] | np.ndarray) -> list[int] | None:
        """Returns the schedule with removals as ``weights`` that just spends the budget; ``None`` if none does.

        Args:
            family: The strategy.
            side: Patches along a side.
            weights: Of the tokens that each block removes, ``[L]``, at least 0.
        """
        patches, total = self.patches(side), np.cumsum(np.asarray(weights, float))
        if self.budget.tokens is None and self.fits(self.alone(side), None):
            return self.alone(side)
        if total[-1] <= 0:
            return None

        def scaled(factor: float) -> list[int]:
            tokens = [patches]
            for layer, gone in enumerate(np.rint(np.minimum(total * factor, patches)), 1):
                wanted = max(1, patches - int(gone)) if weights[layer - 1] > 0 else patches
                tokens.append(min(tokens[-1], max(wanted, family.fewest(layer, tokens[-1]))))
            return tokens

        low, high = 0.0, patches / total[-1] * 2**16  # later steps make up for one that cannot remove as many
        if not self.fits(scaled(high), family):
            return None
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if self.fits(scaled(middle), family) else (middle, high)
        return scaled(high)

    def levels(self, side: int) -> np.ndarray:
        """Returns the token counts to choose from."""
        patches = self.patches(side)
        least = max(1, min(patches, round(0.03 * patches)))
        if self.budget.tokens is not None:
            levels = levels_of(patches, min(least, self.budget.tokens))
            wanted = np.array([min(self.budget.tokens, patches)])
            return np.unique(np.concatenate([levels, wanted]))[::-1]
        return levels_of(patches, least)

    def _steps(self, levels: np.ndarray, family: Family, side: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns in each block whether a step is possible, and its cost, ``[L, K, K]``."""
        depth = self.target.depth
        if family.parts is None:
            can = allowed(levels, family.select.fewest)
            if family.once:  # the first step, or none
                can[1:] = np.eye(len(levels), dtype=bool)[1:]
            shape = (depth, *can.shape)
            return np.broadcast_to(can, shape), np.broadcast_to(self._costs(levels, family, side), shape)
        first, layer, later = family.parts
        a, b = self._steps(levels, first, side), self._steps(levels, later, side)
        return np.concatenate([a[0][:layer], b[0][layer:]]), np.concatenate([a[1][:layer], b[1][layer:]])

    def _costs(self, levels: np.ndarray, family: Family, side: int) -> np.ndarray:
        """Returns the share of the plain model's multiply-adds of a block from level i to j, ``[K, K]``."""
        key = family.base.strategy if isinstance(family.base.strategy, str) else family.name
        if (key, side) not in self._matrices:
            found = np.zeros((len(levels), len(levels)))
            for i, before in enumerate(levels):
                for j, after in enumerate(levels[i:], i):
                    found[i, j] = multiply_adds(self.body, [int(before), int(after)], family.select)[0]
            self._matrices[key, side] = found / self.whole
        return self._matrices[key, side]
