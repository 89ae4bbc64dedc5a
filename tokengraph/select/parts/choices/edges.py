"""Contracts the heaviest edges between two halves of the tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from tokengraph.flat.looks import may_write
from tokengraph.flat.memory import rows_within
from tokengraph.flat.tables import counting, table
from tokengraph.maps.hard import Assignment
from tokengraph.select.parts.graphs.halves import best_match, cosines, interleave, unit_rows
from tokengraph.select.tokens import clamp_budget, valid_counts


def merge_halves(
    metric: Tensor, keep: int | list[int], num_prefix: int, mask: Tensor | None, *, receivers: bool = False
) -> Assignment:
    """Returns the map of one merging round between alternating halves; see :func:`tokengraph.tome`.

    ``receivers``: with ``centers``, where images are alike; see ``with_receivers`` for others.
    """
    first = num_prefix % 2  # patch 0 has index P, so it is in A if P is even
    merged, kept = count_merges(metric, keep, first, mask)
    if merged == 0 or metric.size(1) < 2 or metric.size(0) == 0:
        place = torch.arange(metric.size(1), device=metric.device).expand(metric.size(0), -1)
        return Assignment.from_dense(place, kept, mask=mask)
    with torch.no_grad(), torch.autocast(metric.device.type, enabled=False):
        halves = Halves.of(metric, first, mask)
        return contract_halves(halves, merged, kept, mask, by_index=num_prefix > 0, receivers=receivers)


class Halves(NamedTuple):
    """The heaviest edge of each token of A to B, and how to find its token of B.

    Args:
        best: The heaviest edge of each token of A, ``[B, n_a]``; padding is at ``-inf``.
        first: Place of the first token of A, 0 or 1.
        in_b: Tokens in B.
        score: All edges ``[B, n_a, n_b]``; ``None`` where they exceed the memory budget.
        to: Then the token of B of each heaviest edge, ``[B, n_a]``.
    """

    best: Tensor
    first: int
    in_b: int
    score: Tensor | None = None
    to: Tensor | None = None

    @classmethod
    def of(cls, metric: Tensor, first: int, mask: Tensor | None) -> Halves:
        """Of the tokens ``metric [B, N, D]``, N >= 2, by cosine."""
        unit = unit_rows(metric)
        other = None if mask is None else mask[:, 1 - first :: 2]
        a, b = unit[:, first::2], unit[:, 1 - first :: 2]
        if rows_within(a.size(0), b.size(1), a.size(1)) < a.size(1):
            (best, to), score = best_match(a, b, other), None
        else:
            score, to = cosines(a, b, other), None
            best = score.amax(dim=2)
        best = best if mask is None else best.masked_fill(~mask[:, first::2], -torch.inf)
        return cls(best, first, b.size(1), score, to)

    def partners(self, sources: Tensor) -> Tensor:
        """Returns the token of B of the heaviest edge of tokens ``[B, R]`` of A; ties to the lower index."""
        if self.to is not None:
            return self.to.gather(1, sources)
        assert self.score is not None  # argmax is slow, so it runs only for the tokens that may merge
        return self.score.gather(1, sources[..., None].expand(-1, -1, self.in_b)).argmax(dim=2)


def contract_halves(
    halves: Halves,
    merged: int | list[int],
    kept: int | list[int],
    mask: Tensor | None,
    *,
    by_index: bool,
    receivers: bool = False,
) -> Assignment:
    """Returns the map in which each image's ``merged`` heaviest edges are contracted.

    Args:
        halves: The edges.
        merged: Tokens that an image loses, at most as many as A has.
        kept: Its clusters afterwards.
        mask: ``[B, N]`` bool, True where there is a token; real tokens first.
        by_index: True: unmerged tokens of A come by index; False: by falling similarity.
        receivers: Adds ``centers``, each cluster's token of B or the unmerged one, if images are alike.

    Returns:
        Clusters in the published order: unmerged tokens of A, then B. An image without merges keeps its order.
    """
    images, first = halves.best.size(0), halves.first
    tokens = halves.best.size(1) + halves.in_b
    most = merged if isinstance(merged, int) else max(merged, default=0)
    order = halves.best.argsort(dim=1, descending=True, stable=True)
    sources = order[:, :most]
    partner = halves.partners(sources)
    if isinstance(merged, int) and mask is None and may_write(order):
        return _equal_merges(order, partner, merged, tokens, first, by_index, receivers)
    # Where images differ, columns with one row an image.
    removed = merged if isinstance(merged, int) else torch.tensor(merged, device=order.device)[:, None]
    in_a = order.size(1) if mask is None else mask[:, first::2].sum(dim=1, keepdim=True)
    leaves = torch.arange(sources.size(1), device=order.device) < removed
    if by_index:
        gone = torch.zeros_like(order, dtype=torch.bool).scatter_(1, sources, leaves.expand_as(sources))
        number = (~gone).cumsum(dim=1) - 1
    else:
        place = torch.arange(order.size(1), device=order.device) - removed
        number = torch.empty_like(order).scatter_(1, order, place.expand_as(order))
    target = in_a - removed + partner
    if isinstance(removed, Tensor):
        target = torch.where(leaves, target, number.gather(1, sources))
    cluster_b = in_a - removed + torch.arange(tokens - order.size(1), device=order.device)
    cluster = interleave(number.scatter(1, sources, target), cluster_b.expand(images, -1), first)
    if isinstance(removed, Tensor):  # an image without merges keeps its order
        cluster = torch.where(removed == 0, torch.arange(tokens, device=order.device), cluster)
    return Assignment.from_dense(cluster, kept, mask=mask)


def _equal_merges(
    order: Tensor, partner: Tensor, merged: int, tokens: int, first: int, by_index: bool, receivers: bool
) -> Assignment:
    """:func:`contract_halves` where all images lose as many tokens: numbers are written where they belong.

    Args:
        order: Tokens of A, heaviest edge first, ``[B, n_a]``.
        partner: Token of B of the first ``merged``, ``[B, merged]``.
        merged: Tokens that an image loses.
        tokens: N.
        first: Place of the first token of A.
        by_index: As for :func:`contract_halves`, and likewise ``receivers``.
        receivers: See there.
    """
    images, left = order.size(0), order.size(1) - merged
    rest = order[:, merged:]
    rest = rest.sort(dim=1)[0] if by_index else rest
    cluster = _numbers_of_b(tokens, left, first, str(order.device)).expand(images, -1).clone()
    a = cluster[:, first::2]
    a.scatter_(1, rest, counting(left, order.device).expand(images, -1))
    a.scatter_(1, order[:, :merged], partner + left)
    assignment = Assignment.from_dense(cluster, tokens - merged, check=False)
    if not receivers:
        return assignment
    ids = counting(images * tokens, order.device).view(images, tokens)
    centers = torch.cat([ids[:, first::2].gather(1, rest), ids[:, 1 - first :: 2]], dim=1)
    return replace(assignment, centers=centers.flatten())


@table(256)
def _numbers_of_b(tokens: int, left: int, first: int, device: str) -> Tensor:
    """Returns ``[N]``: tokens of B are numbered behind the ``left`` unmerged tokens of A; those of A hold 0."""
    number = torch.zeros(tokens, dtype=torch.long, device=device)
    number[1 - first :: 2] = torch.arange(left, left + number[1 - first :: 2].numel(), device=device)
    return number


def count_merges(
    metric: Tensor, keep: int | list[int], first: int, mask: Tensor | None
) -> tuple[int, int] | tuple[list[int], list[int]]:
    """Returns the number of merges of each image, at most its smaller half, and its number of clusters."""
    budget = clamp_budget(keep, metric, mask)
    if isinstance(budget, int) and mask is None:
        merged = min(metric.size(1) - budget, metric.size(1) // 2)
        return merged, metric.size(1) - merged
    counts = valid_counts(metric, mask)
    budgets = budget if isinstance(budget, list) else [budget] * len(counts)
    in_a = [(n + 1 - first) // 2 for n in counts]
    lost = [min(n - k, a, n - a) for n, k, a in zip(counts, budgets, in_a, strict=True)]
    return lost, [n - m for n, m in zip(counts, lost, strict=True)]
