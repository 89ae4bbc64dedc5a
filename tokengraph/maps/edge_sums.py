"""Sums of rows over the edges of a soft map."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.flat.segment import TINY, Runs, as_type, wide


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


def mean_with_extra(x: Tensor, own: Tensor, token: Tensor, cluster: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Picks each cluster's own row, and takes the mean with the weighted rows of the other edges; without gradient.

    Args:
        x: Token rows, ``[M, C]``.
        own: The token of each cluster, ``[K]``, of weight 1.
        token: Token of each other edge, ``[E]``.
        cluster: Its cluster, ``[E]``.
        weight: Its weight, ``[E]``.

    Returns:
        Rows ``[K, C]`` in the dtype of ``x``, and the sum of the weights, ``[K]``.

    Cost: one copy of the picked rows, and three of the edges' rows; no sort.
    """
    rows, theirs = (as_type(x.index_select(0, ids), wide(x)) for ids in (own, token))
    theirs = theirs.mul_(as_type(weight, theirs.dtype).view(-1, *[1] * (x.dim() - 1)))
    total = weight.new_ones(rows.size(0)).index_add_(0, cluster, weight)
    rows.index_add_(0, cluster, theirs)
    share = as_type(total.index_select(0, cluster), rows.dtype).view(-1, *[1] * (x.dim() - 1))
    rows.index_copy_(0, cluster, rows.index_select(0, cluster).div_(share))  # those of one cluster are equal
    return as_type(rows, x.dtype), total


def sorted_sums(
    x: Tensor, weight: Tensor, mass: Tensor, token: Tensor, cluster: Tensor, rows: int, normalize: bool
) -> tuple[Tensor, Tensor]:
    """Sums weighted rows and masses by edges that are sorted once for both.

    Args:
        x: Token rows, ``[M, C]``.
        weight: Of each edge, ``[E]``.
        mass: Weight times size of each edge, ``[E]``.
        token: Of each edge, ``[E]``.
        cluster: Of each edge, ``[E]``.
        rows: Clusters.
        normalize: Rows are means by ``mass``, not sums by ``weight``.

    Returns:
        Rows ``[rows, C]`` in the dtype of ``x``, and masses ``[rows]``.
    """
    runs = Runs.of(cluster, rows)
    by_edge = weight.index_select(0, runs.order)
    mass = by_edge if mass is weight else mass.index_select(0, runs.order)
    total = runs.sum(as_type(mass, wide(mass)))
    if normalize:
        by_edge = mass / total.clamp_min(TINY).index_select(0, runs.index)
    made = runs.weighted(as_type(x, wide(x)), as_type(by_edge, wide(x)), token.index_select(0, runs.order))
    return as_type(made, x.dtype), total
