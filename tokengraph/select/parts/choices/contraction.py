"""Multilevel contraction: matched nodes become one, level by level, until each image has its number of nodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tokengraph.select.parts.choices.matching import heavy_matching
from tokengraph.select.parts.graphs.pairs import Pairs, join_pairs, nearest_pairs

Match = Callable[[Tensor, Tensor, Tensor, Tensor, list[int]], tuple[Tensor, Tensor]]


@dataclass
class Level:
    """The graph at one level.

    Args:
        label: Node of each token, ``[M]``.
        x: Mean features of each node, ``[K, C]`` float32.
        size: Input patches of each node, ``[K]``.
        image: Image of each node, ``[K]``, sorted.
        pairs: The edges between nodes.
        degree: Sum of the weights of each node's tokens' edges, those inside it included, ``[K]``.
        basis: Rows of a subspace of the graph's signals, ``[K, R]``, or ``None``.
    """

    label: Tensor
    x: Tensor
    size: Tensor
    image: Tensor
    pairs: Pairs
    degree: Tensor
    basis: Tensor | None = None

    def merged(self, first: Tensor, second: Tensor) -> Level:
        """Returns the level in which each node of ``second`` has joined its partner in ``first``, which is lower."""
        nodes = self.image.numel()
        target = torch.arange(nodes, device=self.image.device)
        root = torch.ones_like(target, dtype=torch.bool)
        target[second], root[second] = first, False
        number = (root.cumsum(0) - 1)[target]
        total = self.size[first] + self.size[second]
        share = (self.size[second] / total.clamp_min(torch.finfo(torch.float32).tiny))[:, None]
        x, size, degree = self.x.clone(), self.size.clone(), self.degree.clone()
        x[first] = torch.lerp(self.x[first], self.x[second], share)
        size[first], degree[first] = total, self.degree[first] + self.degree[second]
        basis = self.basis
        if basis is not None:
            basis = basis.clone()
            basis[first] = (basis[first] + basis[second]) / 2
        left = int(root.sum())
        pairs = join_pairs(number[self.pairs.a], number[self.pairs.b], self.pairs.weight, left)
        return Level(
            number[self.label],
            x[root],
            size[root],
            self.image[root],
            pairs,
            degree[root],
            None if basis is None else basis[root],
        )


def first_level(x: Tensor, size: Tensor, image: Tensor, pairs: Pairs) -> Level:
    """Returns the level at which every token is a node."""
    degree = pairs.weight.new_zeros(x.size(0))
    degree = degree.index_add_(0, pairs.a, pairs.weight).index_add_(0, pairs.b, pairs.weight)
    return Level(torch.arange(x.size(0), device=x.device), x.float(), size.float(), image, pairs, degree)


def contract(
    level: Level,
    budgets: list[int],
    score: Callable[[Level], Tensor],
    *,
    match: Match = heavy_matching,
    renew: Callable[[Level], Level] | None = None,
    relink: int = 8,
) -> Tensor:
    """Contracts matchings level by level.

    Args:
        level: The finest level.
        budgets: Nodes that each image keeps.
        score: Scores the edges of a level; ``-inf`` forbids a merge. An image in which all are forbidden stays so.
        match: Finds a matching from scores.
        renew: Updates a level's basis after a merge.
        relink: If an image has too many nodes and no edges, nodes get edges to this many nearest by cosine of their
            means. 0: such images keep more nodes.

    Returns:
        The node of each token, ``[M]``, numbered by its first token.

    Cost: one matching for each level, at least ``log2(N / K)`` of them.
    """
    images = len(budgets)
    while True:
        counts = torch.bincount(level.image, minlength=images).tolist()
        room = [max(0, n - keep) for n, keep in zip(counts, budgets, strict=True)]
        if not any(room):
            return level.label
        there = torch.bincount(level.image[level.pairs.a], minlength=images).tolist()
        bare = [b for b in range(images) if room[b] and not there[b]]
        if bare and relink:
            level = _relinked(level, bare, counts, relink)
        first, second = match(level.pairs.a, level.pairs.b, score(level), level.image, room)
        if not first.numel():
            return level.label
        level = level.merged(first, second)
        level = level if renew is None else renew(level)


def _relinked(level: Level, images: list[int], counts: list[int], neighbors: int) -> Level:
    """Adds edges of weight 0 between near nodes of images that have none."""
    found = [level.pairs]
    for b in images:
        start = sum(counts[:b])
        ptr = level.image.new_tensor([0, counts[b]])
        pairs = nearest_pairs(level.x[start : start + counts[b]], ptr, neighbors).moved(start)
        found.append(pairs._replace(weight=torch.zeros_like(pairs.weight)))
    a, b, weight = (torch.cat(part) for part in zip(*found, strict=True))
    level.pairs = join_pairs(a, b, weight, level.image.numel())
    return level
