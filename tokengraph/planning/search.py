"""Dynamic programming: the schedule of the least predicted loss within a budget."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

LEVELS = 48  # token counts between which the programme chooses
HALVINGS = 30


def levels_of(patches: int, least: int = 1) -> np.ndarray:
    """Returns the token counts to choose from, falling from ``patches`` to ``least``."""
    count = min(LEVELS, patches - least + 1)
    return np.unique(np.round(np.linspace(patches, least, max(count, 1))).astype(int))[::-1]


def allowed(levels: np.ndarray, fewest: Callable[[int], int]) -> np.ndarray:
    """Returns ``[K, K]`` bool: whether one step can go from ``levels[i]`` to ``levels[j]`` tokens."""
    least = np.array([fewest(int(n)) for n in levels])
    falls = levels[None, :] < levels[:, None]
    return np.eye(len(levels), dtype=bool) | (falls & (levels[None, :] >= least[:, None]))


def solve(
    losses: np.ndarray, costs: np.ndarray, limit: float, can: np.ndarray, last: int | None = None
) -> list[int] | None:
    """Finds the steps of the least loss whose cost is at most ``limit``.

    Args:
        losses: Of a step from level i to level j in each block, ``[L, K, K]``.
        costs: Of a block that begins with level i and ends with j, ``[L, K, K]``.
        limit: Largest total cost.
        can: Possible steps, ``[L, K, K]``.
        last: The level that the last block must reach at least; ``None``: any.

    Returns:
        The level before the first block and after each; ``None`` if the budget cannot be met.

    Cost: ``O(L K^2)`` for each of 30 prices of the Lagrangian.
    """
    free = _priced(losses, costs, 0.0, can, last)
    if free is not None and _total(costs, free) <= limit:
        return free
    high = float(losses.max()) / max(float(costs[costs > 0].min()), 1e-12) * 1e3
    cheap = _priced(losses, costs, high, can, last)
    if cheap is None or _total(costs, cheap) > limit:
        return None
    low = high * 1e-16
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        found = _priced(losses, costs, middle, can, last)
        assert found is not None
        if _total(costs, found) <= limit:
            cheap, high = found, middle
        else:
            low = middle
    return cheap


def _priced(losses: np.ndarray, costs: np.ndarray, price: float, can: np.ndarray, last: int | None) -> list[int] | None:
    """Returns the levels of the least loss plus ``price`` times the cost."""
    step = np.where(can, losses + price * costs, np.inf)
    best = np.full(costs.shape[-1], np.inf)
    best[0] = 0.0
    came = []
    for block in step:
        total = best[:, None] + block
        came.append(total.argmin(0))
        best = total.min(0)
    ends = best if last is None else best[last:]
    if not np.isfinite(ends).any():
        return None
    path = [int(ends.argmin()) + (last or 0)]
    for before in reversed(came):
        path.append(int(before[path[-1]]))
    return path[::-1]


def _total(costs: np.ndarray, path: list[int]) -> float:
    return float(sum(block[a, b] for block, a, b in zip(costs, path[:-1], path[1:], strict=True)))


def solve_once(
    losses: np.ndarray, costs: np.ndarray, limit: float, can: np.ndarray, last: int | None = None
) -> list[int] | None:
    """As :func:`solve`, for strategies that act once: tries every block and level.

    Cost: ``O(L K)``.
    """
    depth, count = len(losses), costs.shape[-1]
    found = None
    for layer in range(depth):
        for level in range(count):
            path = [0] * (layer + 1) + [level] * (depth - layer)
            if not can[layer, 0, level] or _total(costs, path) > limit or (last is not None and level < last):
                continue
            loss = losses[layer, 0, level] if level else 0.0
            if found is None or loss < found[0]:
                found = loss, path
    return None if found is None else found[1]


def filled(
    tokens: list[int], cost: Callable[[list[int]], float], limit: float, fewest: Callable[[int, int], int]
) -> list[int]:
    """Gives tokens back until the cost nearly reaches ``limit``; the shape of the schedule stays.

    Args:
        tokens: A schedule within the budget.
        cost: Of a schedule.
        limit: Largest cost.
        fewest: Fewest tokens that a step in a block (from 1) can leave of a number of tokens.
    """
    first = tokens[0]

    def mixed(share: float) -> list[int]:
        """Returns the schedule with ``share`` of its removals."""
        made = [first]
        for layer, n in enumerate(tokens[1:], 1):
            wanted = first - int(np.ceil(share * (first - n)))
            made.append(min(made[-1], max(wanted, fewest(layer, made[-1]))))
        return made

    low, high = 0.0, 1.0
    if cost(mixed(low)) <= limit:
        return mixed(low)
    for _ in range(14):
        middle = (low + high) / 2
        low, high = (low, middle) if cost(mixed(middle)) <= limit else (middle, high)
    return mixed(high)
