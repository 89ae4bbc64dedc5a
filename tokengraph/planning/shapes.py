"""Shapes of published schedules: how the tokens that they remove are spread over the blocks."""

from __future__ import annotations

import numpy as np

THIRDS = (1.0, 0.75, 0.55)  # of three cuts by nearly the same share


def published(depth: int, once: bool = False) -> list[np.ndarray]:
    """Returns weights of the removals of each block, ``[L]``: equal, falling to none, and three cuts.

    Args:
        depth: L.
        once: True for strategies that act once: a single cut, after a sixth of the blocks to a half of them.

    Source: equal and falling numbers as of ToMe; three cuts as of EViT, DynamicViT and ATC.
    """
    if once:
        return [np.eye(depth)[max(0, round(depth * part / 12) - 1)] for part in (2, 3, 4, 5, 6)]
    made = [np.ones(depth), np.linspace(2, 0, depth) if depth > 1 else np.ones(1)]
    if depth >= 4:
        cuts = np.zeros(depth)
        cuts[[depth * i // 4 for i in (1, 2, 3)]] = THIRDS
        made.append(cuts)
    return made
