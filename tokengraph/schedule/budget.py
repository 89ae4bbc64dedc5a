"""One budget: a number or share of tokens to keep, and the layers that a schedule may name."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real

from tokengraph.kinds import explains


@explains
def tokens_to_keep(keep: int | float, num_tokens: int) -> int:
    """Converts a budget to a number of tokens, at most ``num_tokens``.

    Args:
        keep: An int, or a ratio in (0, 1], which gives ``max(1, ceil(ratio * N))``.
        num_tokens: N.

    Returns:
        The number of tokens, ``min(keep, N)``.

    Raises:
        ValueError: If an int is below 1 or a ratio outside (0, 1].
        TypeError: If it is neither.
    """
    if isinstance(keep, bool) or not isinstance(keep, Real):
        raise TypeError(f"Expected keep as an int or a float ratio (got {keep!r}).")
    if not isinstance(keep, Integral):
        if not 0 < keep <= 1:
            raise ValueError(f"Expected a keep ratio in (0, 1] (got keep={keep}). Give a count as an int.")
        keep = max(1, math.ceil(float(keep) * num_tokens))
    if keep < 1:
        raise ValueError(f"Expected keep >= 1 tokens per image (got keep={keep}).")
    return min(int(keep), num_tokens)


def check_layers(layers: Iterable[object], depth: int) -> None:
    """Raises ValueError unless all ``layers``, numbers of finished blocks, are ints in ``[0, depth]``."""
    for layer in layers:
        if isinstance(layer, bool) or not isinstance(layer, Integral) or not 0 <= int(layer) <= depth:
            raise ValueError(f"Expected layers in [0, {depth}] (got {layer!r}). Layer l means: l blocks are finished.")
