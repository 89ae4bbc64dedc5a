"""Neighbourhoods to contract: those inside which the rows of a level's basis vary least."""

from __future__ import annotations

import heapq

import numpy as np
import torch
from torch import Tensor

from tokengraph.select.parts.choices.contraction import Level


def still_neighborhoods(level: Level, room: list[int]) -> tuple[Tensor, Tensor]:
    """Picks neighbourhoods without common nodes by rising local variation cost.

    Args:
        level: The graph, with a basis.
        room: The most merges of each image; a set of n nodes counts ``n - 1``.

    Returns:
        Nodes to keep, and those that join them, ``[E]`` each.

    Cost: about 0.2 ms for each neighbourhood, on the host.

    Source: Loukas, JMLR 20(116), 2019, algorithm 2 with neighbourhoods as candidate sets.
    """
    graph = _Neighbors(level)
    image, left = level.image.tolist(), list(room)
    sets = {node: [node, *graph.near(node)] for node in range(len(image)) if graph.count(node) and left[image[node]]}
    heap = [(graph.cost(nodes), center) for center, nodes in sets.items()]
    heapq.heapify(heap)
    free, first, second = [True] * len(image), [], []
    while heap:
        _, center = heapq.heappop(heap)
        nodes, most = sets[center], left[image[center]]
        if not most:
            continue
        rest = [n for n in nodes if free[n]]
        if len(rest) < len(nodes) or len(rest) > most + 1:  # comes back as what it can still be
            sets[center] = rest = graph.heaviest(center, rest, most + 1)
            if len(rest) > 1:
                heapq.heappush(heap, (graph.cost(rest), center))
            continue
        low = min(nodes)
        for node in nodes:
            free[node] = False
            if node != low:
                first.append(low)
                second.append(node)
        left[image[center]] -= len(nodes) - 1
    return level.image.new_tensor(first, dtype=torch.long), level.image.new_tensor(second, dtype=torch.long)


class _Neighbors:
    """The edges of a level by node, and costs of sets of nodes, in numpy, which is the faster for few numbers."""

    def __init__(self, level: Level) -> None:
        assert level.basis is not None
        a, b, weight = (t.cpu().numpy() for t in level.pairs)
        ends, others = np.concatenate([a, b]), np.concatenate([b, a])
        order = np.lexsort((others, ends))
        self.other, self.weight = others[order], np.concatenate([weight, weight]).astype(np.float64)[order]
        nodes = level.image.numel()
        self.start = np.searchsorted(ends[order], np.arange(nodes + 1))
        self.degree = np.bincount(ends, np.concatenate([weight, weight]), nodes)
        self.basis = level.basis.cpu().numpy()

    def count(self, node: int) -> int:
        """Returns the number of a node's neighbours."""
        return int(self.start[node + 1] - self.start[node])

    def near(self, node: int) -> list[int]:
        """Returns a node's neighbours, the lowest first."""
        return self.other[self.start[node] : self.start[node + 1]].tolist()

    def cost(self, nodes: list[int]) -> float:
        """Returns the local variation cost of a set of at least two nodes."""
        ids = np.sort(np.array(nodes))
        rows = self.basis[ids]
        rows = rows - rows.mean(axis=0)
        inside = np.zeros((len(ids), len(ids)))
        for row, node in enumerate(ids):
            span = slice(self.start[node], self.start[node + 1])
            place = np.searchsorted(ids, self.other[span])
            place[place == len(ids)] = 0
            met = ids[place] == self.other[span]
            inside[row, place[met]] = self.weight[span][met]
        lap = np.diag(2 * self.degree[ids] - inside.sum(axis=1)) - inside
        return float(np.linalg.eigvalsh(rows.T @ lap @ rows)[-1]) / (len(ids) - 1)

    def heaviest(self, center: int, nodes: list[int], most: int) -> list[int]:
        """Returns at most so many of the nodes: the centre and those with the heaviest edges to it."""
        if len(nodes) <= most:
            return nodes
        span = slice(self.start[center], self.start[center + 1])
        weight = dict(zip(self.other[span].tolist(), self.weight[span].tolist(), strict=True))
        weight[center] = np.inf
        return sorted(nodes, key=lambda node: (-weight.get(node, 0.0), node))[:most]
