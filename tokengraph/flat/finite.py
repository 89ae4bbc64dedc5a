"""Features that are not finite, where a method must go on without them."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.flat.looks import may_look


def zero_where_not_finite(x: Tensor) -> Tensor:
    """``x`` with zeros in place of NaN and infinity; the same tensor where a look on CPU finds none.

    Cost: one sum on CPU; elsewhere, and while a program is made of the code, one copy and no host synchronisation.
    """
    if may_look(x) and bool(torch.isfinite(x.sum())):
        return x
    return torch.where(torch.isfinite(x), x, 0.0)
