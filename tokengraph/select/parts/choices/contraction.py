"""Multilevel contraction: matched nodes become one, level by level, until each image has its number of nodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tokengraph.flat.segment import segment_sum
from tokengraph.select.parts.choices.matching import heavy_matching
from tokengraph.select.parts.graphs.pairs import Pairs, join_pairs, nearest_pairs

Match = Callable[[Tensor, Tensor, Tensor, Tensor, list[int]], tuple[Tensor, Tensor]]
Pick = Callable[["Level", "list[int]"], "tuple[Tensor, Tensor]"]  # level, most merges of each image: (first, second)


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
        """Returns the level in which each node of ``second`` has joined the lower node of ``first`` beside it."""
        nodes = self.image.numel()
        target = torch.arange(nodes, device=self.image.device)
        root = torch.ones_like(target, dtype=torch.bool)
        target[second], root[second] = first, False
        number, left = (root.cumsum(0) - 1)[target], int(root.sum())

        def joined(rows: Tensor) -> Tensor:
            return segment_sum(rows, number, left, backend="segment" if rows.is_cuda else "auto").to(rows.dtype)

        size = joined(self.size)
        share = self.size / size.clamp_min(torch.finfo(torch.float32).tiny)[number]
        basis = self.basis
        if basis is not None:
            basis = joined(basis) / torch.bincount(number, minlength=left)[:, None]
        pairs = join_pairs(number[self.pairs.a], number[self.pairs.b], self.pairs.weight, left)
        x = joined(self.x * share[:, None])
        return Level(number[self.label], x, size, self.image[root], pairs, joined(self.degree), basis)


def first_level(x: Tensor, size: Tensor, image: Tensor, pairs: Pairs) -> Level:
    """Returns the level at which every token is a node."""
    degree = pairs.weight.new_zeros(x.size(0))
    degree = degree.index_add_(0, pairs.a, pairs.weight).index_add_(0, pairs.b, pairs.weight)
    return Level(torch.arange(x.size(0), device=x.device), x.float(), size.float(), image, pairs, degree)


def matching(score: Callable[[Level], Tensor], match: Match = heavy_matching) -> Pick:
    """Returns a choice of merges that matches nodes by scores of edges; a score of ``-inf`` forbids a merge."""

    def pick(level: Level, room: list[int]) -> tuple[Tensor, Tensor]:
        return match(level.pairs.a, level.pairs.b, score(level), level.image, room)

    return pick


def contract(
    level: Level,
    budgets: list[int],
    pick: Pick,
    *,
    renew: Callable[[Level], Level] | None = None,
    relink: int = 8,
) -> Tensor:
    """Contracts sets of nodes level by level.

    Args:
        level: The finest level.
        budgets: Nodes that each image keeps.
        pick: Picks the merges of a level; an image for which it picks none keeps more nodes. See :func:`matching`.
        renew: Updates a level's basis after a merge.
        relink: If an image has too many nodes and no edges, nodes get edges to this many nearest by cosine of their
            means. 0: such images keep more nodes.

    Returns:
        The node of each token, ``[M]``, numbered by its first token.

    Cost: one choice for each level, at least ``log2(N / K)`` of them for matchings.
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
        first, second = pick(level, room)
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
