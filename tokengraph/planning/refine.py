"""Local search around the best schedule: moves removals between blocks, measures each move, and keeps what helps."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tokengraph.planning.explore import Explorer
from tokengraph.planning.family import Family

WAVES = 4  # half waves over the depth, at most, along which removals move together
HEIGHTS = (0.5, 0.25)  # of a move, in mean removals of a block
MOVES = 48  # measured at most


def refine(explorer: Explorer) -> None:
    """Tries schedules near the best one: waves over the depth, single blocks, and the neighbouring input sizes.

    A move that turns out worse is given up after the first images.

    Cost: at most 48 runs of the images; most moves are given up after a third of them.
    """
    left = MOVES
    for height in HEIGHTS:
        left -= _sizes(explorer)
        for move in _moves(explorer.space.target.depth):
            for sign in (1, -1):
                best = explorer.best()
                if best is None or best.family is None or best.family.once or left <= 0:
                    return
                removed = -np.diff(np.array(best.tokens, float))
                weights = np.maximum(removed + sign * height * removed.mean() * move, 0)
                tried = _attempt(explorer, best.family, best.side, weights)
                left -= tried is not None
                if tried:
                    break


def _sizes(explorer: Explorer) -> int:
    """Tries the best shape on images one patch larger and smaller; returns how many were measured."""
    best = explorer.best()
    if best is None or best.family is None or best.family.once:
        return 0
    removed = -np.diff(np.array(best.tokens, float))
    sides = [side for side in explorer.sides if abs(side - best.side) == 1]
    return sum(_attempt(explorer, best.family, side, removed) is not None for side in sides)


def _moves(depth: int) -> Iterator[np.ndarray]:
    """Yields directions ``[L]`` in which removals change: waves, longest first, then two mean removals of one block."""
    for waves in range(1, min(WAVES, depth - 1) + 1):
        yield np.cos(np.pi * waves * (np.arange(depth) + 0.5) / depth)
    yield from 2 * np.eye(depth)


def _attempt(explorer: Explorer, family: Family, side: int, weights: np.ndarray) -> bool | None:
    """Measures the schedule of a shape; returns whether it is the best now, ``None`` if nothing was to be measured."""
    tokens = explorer.space.shaped(family, side, weights)
    if tokens is None or explorer.known(family, side, tokens):
        return None
    return explorer.best() is explorer.measure(family, side, tokens)
