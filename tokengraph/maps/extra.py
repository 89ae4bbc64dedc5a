"""Sums of a map in which each cluster has a token of its own, and few edges more."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.flat.segment import as_type, wide


def add_extra(
    x: Tensor, size: Tensor | None, own: Tensor, token: Tensor, cluster: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Picks each cluster's own row, and adds the weighted rows of the other edges.

    Args:
        x: Token rows, ``[M, C]``.
        size: ``[M]``; ``None``: ones.
        own: The token of each cluster, ``[K]``.
        token: Token of each other edge, ``[E]``.
        cluster: Its cluster, ``[E]``.
        weight: Its weight, ``[E]``.

    Returns:
        Rows ``[K, C]`` in the dtype of ``x``, summed in float32 or wider, and sizes ``[K]``.

    Cost: one copy of the picked rows, and one of the edges' rows; no sort.
    """
    rows, theirs = (as_type(x.index_select(0, ids), wide(x)) for ids in (own, token))
    weight = as_type(weight, wide(weight))
    rows.index_add_(0, cluster, theirs * as_type(weight, theirs.dtype).view(-1, *[1] * (x.dim() - 1)))
    if size is None:
        sizes, more = torch.ones(own.size(0), dtype=torch.float32, device=x.device), weight
    else:
        sizes, more = size.index_select(0, own), weight * size.index_select(0, token)
    return as_type(rows, x.dtype), sizes.index_add_(0, cluster, as_type(more, sizes.dtype))
