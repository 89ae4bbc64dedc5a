"""Local search around the best schedules: moves removals between blocks, measures each move, keeps what helps."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tokengraph.planning.explore import Explorer, Trial
from tokengraph.planning.family import Family

WAVES = 4  # half waves over the depth, at most, along which removals move together
HEIGHTS = (0.5, 0.25)  # of a move, in mean removals of a block
STARTS = 2  # strategies whose best schedules a search begins from
MOVES = 40  # measured from each start, at most


def refine(explorer: Explorer) -> None:
    """Tries schedules near the best one of each leading strategy.

    Several starts, because strategies end in different schedules: one that is behind in few large cuts may be ahead in
    many small ones, which no single move leads to. A move that turns out worse is given up after the first images.

    Cost: at most 40 runs of the images for each of 2 starts; most moves are given up after a third of them.
    """
    for start in explorer.leaders(STARTS):
        _climb(explorer, start)


def _climb(explorer: Explorer, best: Trial) -> None:
    """Searches around one schedule: waves over the depth, single blocks, and the neighbouring input sizes."""
    assert best.family is not None
    if best.family.once:
        return
    family, left = best.family, MOVES
    for height in HEIGHTS:
        for side in [side for side in explorer.sides if abs(side - best.side) == 1 and left > 0]:
            found = _attempt(explorer, family, side, _removed(best), best)
            left -= found is not None
            best = _better(found, best)
        for move in _moves(explorer.space.target.depth):
            for sign in (1, -1):
                if left <= 0:
                    return
                removed = _removed(best)
                weights = np.maximum(removed + sign * height * removed.mean() * move, 0)
                found = _attempt(explorer, family, best.side, weights, best)
                left -= found is not None
                before, best = best, _better(found, best)
                if best is not before:
                    break


def _removed(trial: Trial) -> np.ndarray:
    return -np.diff(np.array(trial.tokens, float))


def _better(found: Trial | None, best: Trial) -> Trial:
    """Returns the better one; one that was given up is never it."""
    if found is None or not found.measured.whole or found.measured.score >= best.measured.score:
        return best
    return found


def _moves(depth: int) -> Iterator[np.ndarray]:
    """Yields directions ``[L]`` in which removals change: waves, longest first, then two mean removals of one block."""
    for waves in range(1, min(WAVES, depth - 1) + 1):
        yield np.cos(np.pi * waves * (np.arange(depth) + 0.5) / depth)
    yield from 2 * np.eye(depth)


def _attempt(explorer: Explorer, family: Family, side: int, weights: np.ndarray, best: Trial) -> Trial | None:
    """Measures the schedule of a shape until it is behind ``best``; ``None`` if nothing was to be measured."""
    tokens = explorer.space.shaped(family, side, weights)
    if tokens is None or explorer.known(family, side, tokens):
        return None
    return explorer.measure(family, side, tokens, rival=best)
