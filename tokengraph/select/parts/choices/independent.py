"""Maximal independent sets: nodes more than k hops apart, such that every node has one of them within k hops."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.select.parts.graphs.pairs import Pairs


def independent_centers(pairs: Pairs, rank: Tensor, hops: int) -> Tensor:
    """Visits nodes by rank; each that no centre covers becomes one, and covers all nodes within ``hops``.

    Args:
        pairs: The edges, over the whole batch.
        rank: Order of the visits, ``[M]``; ties go to the lower index.
        hops: k, at least 0.

    Returns:
        The centre of each node, ``[M]`` ids: the nearest in hops; ties go to the lower rank.

    Cost: a breadth-first search to depth k from each centre, on the host.

    Source: the first maximal k-independent set of an order, as in Bacciu, Conte & Landolfi, *Generalizing Downsampling
    from Regular Data to Graphs*, AAAI 2023.
    """
    nodes = rank.numel()
    near = _neighbors(pairs, nodes)
    center, hop = [-1] * nodes, [hops + 1] * nodes
    for node in rank.argsort(stable=True).tolist():
        if center[node] >= 0:
            continue
        center[node], hop[node], front = node, 0, [node]
        for depth in range(1, hops + 1):
            reached = []
            for i in front:
                for j in near[i]:
                    if depth < hop[j]:  # an earlier centre keeps nodes that are as near to it
                        center[j], hop[j] = node, depth
                        reached.append(j)
            front = reached
    return torch.tensor(center, dtype=torch.long, device=rank.device)


def _neighbors(pairs: Pairs, nodes: int) -> list[list[int]]:
    near: list[list[int]] = [[] for _ in range(nodes)]
    for i, j in zip(pairs.a.tolist(), pairs.b.tolist(), strict=True):
        near[i].append(j)
        near[j].append(i)
    return near
