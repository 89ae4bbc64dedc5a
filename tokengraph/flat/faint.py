"""Drops weights that are too small to matter, before products of many rows use them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

FAINT = 1e-30  # far below the rounding of a sum with weights near 1, far above subnormal numbers (1.2e-38)


def drop_faint(weight: Tensor) -> Tensor:
    """Returns weights with zeros in place of those up to ``FAINT``, which no sum in float32 would show.

    The tails of a softmax of distances end in subnormal numbers. A CPU multiplies these many times slower than others,
    so that a few of them slow a whole product down. NaN stays NaN; the gradient of a dropped weight is zero.

    Args:
        weight: Non-negative weights, any shape, float32 or wider.

    Cost: one pass; no host synchronisation.
    """
    return F.threshold(weight, FAINT, 0.0)
