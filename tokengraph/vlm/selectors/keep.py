"""A map that keeps some tokens and drops the others."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.maps.hard import Assignment


def keep_tokens(chosen: Tensor, count: int) -> Assignment:
    """Returns the map that keeps the tokens ``chosen [B, K]`` of ``count``, in their order, and drops all others."""
    there = torch.zeros(chosen.size(0), count, dtype=torch.bool, device=chosen.device).scatter(1, chosen, True)
    cluster = torch.where(there, there.cumsum(dim=1) - 1, -1)
    keep = chosen.size(1)
    return Assignment.from_dense(cluster, keep, drops=keep < count, centers=chosen.sort(dim=1).values, single=True)
