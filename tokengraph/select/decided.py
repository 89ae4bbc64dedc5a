"""A keep decision of a strategy in training that also changes rows or sizes."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from tokengraph.attention.keep_mask import KeepMask


class Moved(NamedTuple):
    """What a step in training does while every token stays in its place.

    Args:
        mask: The cumulative decision over patch tokens.
        x: Their new rows, ``[B, N, C]``.
        size: Their new sizes, ``[B, N]``, by which attention weighs keys; ``None``: no sizes.
    """

    mask: KeepMask
    x: Tensor
    size: Tensor | None = None
