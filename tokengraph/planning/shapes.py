"""Published schedules at a budget: equal removals, removals that fall to none, and three cuts by one share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tokengraph.planning.family import Family
from tokengraph.planning.space import Space

HALVINGS = 30


def published(space: Space, family: Family, side: int, *, cuts: bool = True) -> list[list[int]]:
    """Returns the published schedules that spend the budget, for a strategy and an input size.

    Args:
        space: The model and the budget.
        family: The strategy; one that acts once has single cuts, after a sixth of the blocks to a half of them.
        side: Patches along a side.
        cuts: Whether three cuts are among them.

    Source: equal and falling numbers as of ToMe; three cuts by one share as of EViT, DynamicViT and ATC.
    """
    depth = space.target.depth
    if family.once:
        made = [space.shaped(family, side, np.eye(depth)[max(0, round(depth * p / 12) - 1)]) for p in (2, 3, 4, 5, 6)]
    else:
        made = [space.shaped(family, side, np.ones(depth))]
        made += [space.shaped(family, side, np.linspace(2, 0, depth))] if depth > 1 else []
        made += [_thirds(space, family, side)] if cuts and depth >= 4 else []
    return [tokens for tokens in made if tokens is not None and any(n < tokens[0] for n in tokens)]


def _thirds(space: Space, family: Family, side: int) -> list[int] | None:
    """Three cuts by the same share, in the first block of the second, third and last quarter."""
    patches, depth = space.patches(side), space.target.depth
    cuts = [depth * i // 4 + 1 for i in (1, 2, 3)]

    def tokens_of(share: float) -> list[int]:
        tokens = [patches]
        for layer in range(1, depth + 1):
            wanted = max(1, int(patches * share ** sum(cut <= layer for cut in cuts)))
            tokens.append(min(tokens[-1], max(wanted, family.fewest(layer, tokens[-1]) if layer in cuts else wanted)))
        return tokens

    return _largest(tokens_of, lambda tokens: space.fits(tokens, family))


def _largest(tokens_of: Callable[[float], list[int]], fits: Callable[[list[int]], bool]) -> list[int] | None:
    """Returns the schedule of the largest kept share in (0, 1) that fits; ``None`` if none does."""
    low, high = 0.0, 1.0
    if not fits(tokens_of(low)):
        return None
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(tokens_of(middle)) else (low, middle)
    return tokens_of(low)
