"""Undirected edges of tokens: each pair once, the lower index first, over the flat tokens of a whole batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tokengraph.edges.knn import knn_graph
from tokengraph.select.parts.graphs.halves import SAME

PIECE = 2**18  # elements gathered at a time, so that they stay in the cache
WEIGHTS = ("cosine", "given", "distance", "one")


class Pairs(NamedTuple):
    """Pairs ``a < b``, ``[E]`` int64 each, sorted by ``a`` then ``b``, and their weights ``[E]``."""

    a: Tensor
    b: Tensor
    weight: Tensor

    def of(self, kept: Tensor) -> Pairs:
        """Returns the pairs where ``kept [E]`` is True."""
        return Pairs(self.a[kept], self.b[kept], self.weight[kept])

    def moved(self, shift: int) -> Pairs:
        """Returns the pairs with ``shift`` added to their ids."""
        return Pairs(self.a + shift, self.b + shift, self.weight)


def join_pairs(first: Tensor, second: Tensor, weight: Tensor, nodes: int) -> Pairs:
    """Returns each pair of different nodes once, with the sum of its weights.

    Args:
        first: One end of each edge, ``[E]`` ids in ``[0, nodes)``.
        second: The other end, ``[E]``.
        weight: ``[E]``.
        nodes: Number of nodes.

    Cost: one sort of the edges; a host synchronisation on CUDA, since their number depends on the data.
    """
    apart = first != second
    low, high = torch.minimum(first, second)[apart], torch.maximum(first, second)[apart]
    key, place = torch.unique(low * nodes + high, return_inverse=True)
    summed = weight.new_zeros(key.numel()).index_add_(0, place, weight[apart])
    return Pairs(key // max(nodes, 1), key % max(nodes, 1), summed)


def undirected(edge_index: Tensor, weight: Tensor | None, nodes: int) -> Pairs:
    r"""Returns a directed graph's edges as pairs with weights :math:`(w_{ij} + w_{ji}) / 2`, without loops."""
    if weight is None:
        weight = torch.ones(edge_index.size(1), dtype=torch.float32, device=edge_index.device)
    pairs = join_pairs(edge_index[0], edge_index[1], weight.detach().to(torch.float32), nodes)
    return pairs._replace(weight=pairs.weight / 2)


def cosine_of_pairs(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Returns the cosines of rows ``x[a]`` and ``x[b]``, ``[E]`` float32; cosines of 1 up to rounding are equal."""
    unit = F.normalize(x.float(), dim=1)
    step = max(1, PIECE // max(1, unit.size(1)))
    ends = zip(a.split(step), b.split(step), strict=True)
    found = [unit.index_select(0, i).mul_(unit.index_select(0, j)).sum(dim=1) for i, j in ends]
    return torch.cat(found).clamp_max_(SAME) if found else unit.new_zeros(0)


def weighed(pairs: Pairs, x: Tensor, weight: str, image: Tensor, images: int, *, least: float = 0.0) -> Pairs:
    r"""Replaces the weights of pairs by similarities.

    Args:
        pairs: The edges.
        x: Features, ``[M, C]``.
        weight: ``"cosine"``: of the features; ``"given"``: the edges' own weights are similarities; ``"distance"``:
            they are distances, and :math:`w = \exp(-d^2 / 2 \sigma^2)` with the image's mean distance as sigma;
            ``"one"``: every edge counts 1.
        image: Image of each token, ``[M]``.
        images: B.
        least: Lower similarities become this one. Laplacians and modularity need at least 0.
    """
    if weight == "cosine":
        return pairs._replace(weight=cosine_of_pairs(x, pairs.a, pairs.b).clamp_min_(least))
    if weight == "one":
        return pairs._replace(weight=torch.ones_like(pairs.weight))
    if weight == "given":
        return pairs._replace(weight=pairs.weight.clamp_min(least))
    own = image[pairs.a]
    count = torch.bincount(own, minlength=images).clamp_min(1)
    mean = pairs.weight.new_zeros(images).index_add_(0, own, pairs.weight) / count
    ratio = pairs.weight / mean.clamp_min(torch.finfo(torch.float32).tiny)[own]
    return pairs._replace(weight=torch.exp(-0.5 * ratio.square()))


def nearest_pairs(x: Tensor, ptr: Tensor, neighbors: int) -> Pairs:
    """Returns the kNN graph by cosine of each image's tokens ``x [M, C]`` as pairs, with cosines at least 0 as weights.

    Cost: as for :func:`tokengraph.knn_graph`; on CUDA host synchronisations.
    """
    counts = ptr.diff()
    most = int(counts.max()) if counts.numel() else 0
    if most < 2:
        none = ptr.new_zeros(0)
        return Pairs(none, none, x.new_zeros(0, dtype=torch.float32))
    edges, _ = knn_graph(x, min(neighbors, most - 1), ptr=ptr, cosine=True)
    pairs = undirected(edges, None, x.size(0))
    return pairs._replace(weight=cosine_of_pairs(x, pairs.a, pairs.b).clamp_min_(0))
