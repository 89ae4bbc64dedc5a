"""Matchings: pairs of nodes that share no node, the heaviest first."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.optional import require


def heavy_matching(a: Tensor, b: Tensor, score: Tensor, image: Tensor, most: list[int]) -> tuple[Tensor, Tensor]:
    """Matches nodes greedily along their heaviest edges, at least half of the heaviest matching's total weight.

    Args:
        a: One end of each edge, ``[E]``.
        b: The other end, ``[E]``.
        score: The larger, the sooner; ties go to the edge that comes first. ``-inf`` leaves an edge out.
        image: Image of each node, ``[K]``.
        most: The most pairs of each image; the heaviest are taken.

    Returns:
        The ends of the matched edges.

    Cost: one sort of the edges, and one pass over them on the host (about 0.1 us an edge); one transfer on CUDA.

    Source: heavy-edge matching: Karypis & Kumar, SIAM J. Sci. Comput. 1998; that the greedy order keeps half of the
    weight: Preis, STACS 1999.
    """
    order = score.argsort(descending=True, stable=True)
    order = order[score[order] > -torch.inf]
    free, room = [True] * image.numel(), list(most)
    left, first, second = sum(room), [], []
    own = image[a[order]].tolist()
    for i, j, home in zip(a[order].tolist(), b[order].tolist(), own, strict=True):
        if free[i] and free[j] and room[home] > 0:
            free[i] = free[j] = False
            first.append(i)
            second.append(j)
            room[home] -= 1
            left -= 1
            if not left:
                break
    return a.new_tensor(first, dtype=torch.long), a.new_tensor(second, dtype=torch.long)


def graclus_matching(a: Tensor, b: Tensor, score: Tensor, image: Tensor, most: list[int]) -> tuple[Tensor, Tensor]:
    """Matches nodes by ``torch_cluster.graclus_cluster``, which visits nodes in random order; seeded for each image.

    Arguments and results as for :func:`heavy_matching`.

    Raises:
        ImportError: If torch-cluster is not usable.

    Source: Dhillon, Guan & Kulis, *Weighted Graph Cuts without Eigenvectors*, TPAMI 2007.
    """
    graclus = require("torch-cluster").graclus_cluster
    nodes = torch.bincount(image, minlength=len(most)).tolist()
    home, start, first, second = image[a], 0, [], []
    for b_id, (count, room) in enumerate(zip(nodes, most, strict=True)):
        mine = (home == b_id) & (score > -torch.inf)
        low, high, weight = a[mine] - start, b[mine] - start, score[mine]
        if room > 0 and weight.numel():
            shifted = weight - weight.min() + 1.0  # graclus matches along positive weights only
            devices = [a.device] if a.is_cuda else []
            with torch.random.fork_rng(devices=devices):
                torch.manual_seed(0)
                cluster = graclus(torch.cat([low, high]), torch.cat([high, low]), shifted.repeat(2), count)
            matched = cluster[low] == cluster[high]
            order = torch.where(matched, weight, -torch.inf).argsort(descending=True, stable=True)
            order = order[: min(room, int(matched.sum()))]
            first.append(low[order] + start)
            second.append(high[order] + start)
        start += count
    none = a.new_zeros(0)
    return torch.cat([none, *first]), torch.cat([none, *second])
