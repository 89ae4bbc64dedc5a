"""Scores of merging two connected nodes, the larger the better; functions of a level of a contraction."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.select.parts.choices.contraction import Level
from tokengraph.select.parts.graphs.pairs import cosine_of_pairs

TINY = torch.finfo(torch.float32).tiny


def by_cosine(level: Level) -> Tensor:
    """Returns the cosine of the two nodes' mean features, ``[E]``."""
    return cosine_of_pairs(level.x, level.pairs.a, level.pairs.b)


def by_weight(level: Level) -> Tensor:
    """Returns the summed weight of the edges between two nodes, ``[E]``."""
    return level.pairs.weight


def by_normalized_weight(level: Level) -> Tensor:
    r"""Returns :math:`w_{ij} (1/d_i + 1/d_j)`, ``[E]``: what the merge takes off the normalised cut.

    Source: Dhillon, Guan & Kulis, *Weighted Graph Cuts without Eigenvectors*, TPAMI 2007.
    """
    a, b, weight = level.pairs
    return weight / level.degree[a].clamp_min(TINY) + weight / level.degree[b].clamp_min(TINY)


def modularity_gain(level: Level) -> Tensor:
    r"""Returns the modularity that a merge adds, ``[E]``, for pairs that are each other's best; ``-inf`` for others.

    .. math:: \Delta Q_{ij} = \frac{w_{ij}}{m} - \frac{d_i d_j}{2 m^2}, \qquad 2m = \sum_i d_i

    Source: Clauset, Newman & Moore, Phys. Rev. E 70, 2004.
    """
    a, b, weight = level.pairs
    images = int(level.image[-1]) + 1
    m = level.degree.new_zeros(images).index_add_(0, level.image, level.degree) / 2
    m = m.clamp_min(TINY)[level.image[a]]
    gain = weight / m - (level.degree[a] / m) * (level.degree[b] / m) / 2
    return torch.where(_mutual(a, b, gain, level.image.numel()), gain, -torch.inf)


def little_variation(level: Level) -> Tensor:
    r"""Returns minus the local variation cost of contracting an edge, ``[E]``.

    .. math:: \operatorname{cost}(i, j) = \lVert \Pi^\perp A \rVert_{L_{\{i, j\}}}^2
              = \tfrac12 (d_i + d_j) \lVert a_i - a_j \rVert^2

    where :math:`a_i` are rows of the level's basis, and :math:`L_{\{i, j\}}` counts edges that leave the pair twice.

    Source: Loukas, *Graph Reduction with Spectral and Cut Guarantees*, JMLR 20(116), 2019, for sets of two nodes.
    """
    assert level.basis is not None
    a, b, weight = level.pairs
    degree = level.degree.new_zeros(level.degree.shape)  # of the contracted graph, without the edges inside nodes
    degree = degree.index_add_(0, a, weight).index_add_(0, b, weight)
    return -0.5 * (degree[a] + degree[b]) * (level.basis[a] - level.basis[b]).square().sum(dim=1)


def _mutual(a: Tensor, b: Tensor, score: Tensor, nodes: int) -> Tensor:
    """Returns whether a pair is the best of both its nodes, ``[E]``; ties go to the pair that comes first."""
    order = score.argsort(descending=True, stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(order.numel(), device=order.device)
    best = place.new_full((nodes,), order.numel())
    best = best.scatter_reduce(0, a, place, "amin").scatter_reduce(0, b, place, "amin")
    return (best[a] == place) & (best[b] == place)
