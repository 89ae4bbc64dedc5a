"""Contracts the heaviest edges between two halves of the tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.maps.hard import Assignment
from tokengraph.select.parts.graphs.halves import cosines, interleave, unit_rows
from tokengraph.select.tokens import clamp_budget, valid_counts


def merge_halves(metric: Tensor, keep: int | list[int], num_prefix: int, mask: Tensor | None) -> Assignment:
    """Returns the map of one merging round between alternating halves; see :func:`tokengraph.tome`."""
    images, tokens = metric.shape[:2]
    first = num_prefix % 2  # patch 0 has index P, so it is in A if P is even
    merged, kept = count_merges(metric, keep, first, mask)
    if merged == 0 or tokens < 2 or images == 0:
        return Assignment.from_dense(torch.arange(tokens, device=metric.device).expand(images, -1), kept, mask=mask)
    with torch.no_grad(), torch.autocast(metric.device.type, enabled=False):
        order, partner = match_halves(
            metric, first, mask, merged if isinstance(merged, int) else max(merged, default=0)
        )
        sources = order[:, : partner.size(1)]
        # Where images differ, columns with one row an image.
        removed = merged if isinstance(merged, int) else torch.tensor(merged, device=order.device)[:, None]
        in_a = order.size(1) if mask is None else mask[:, first::2].sum(dim=1, keepdim=True)
        leaves = torch.arange(sources.size(1), device=order.device) < removed
        if num_prefix:  # unmerged tokens of A are sorted by index
            gone = torch.zeros_like(order, dtype=torch.bool).scatter_(1, sources, leaves.expand_as(sources))
            number = (~gone).cumsum(dim=1) - 1
        else:  # or their similarity
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


def match_halves(metric: Tensor, first: int, mask: Tensor | None, most: int) -> tuple[Tensor, Tensor]:
    """Returns A by falling similarity, ``[B, N/2]``, and the partners in B of its first ``most``, ``[B, most]``."""
    unit = unit_rows(metric)
    other = None if mask is None else mask[:, 1 - first :: 2]
    score = cosines(unit[:, first::2], unit[:, 1 - first :: 2], other)
    best = score.amax(dim=2)
    if mask is not None:
        best = best.masked_fill(~mask[:, first::2], -torch.inf)
    order = best.argsort(dim=1, descending=True, stable=True)
    # argmax is slow, so it runs only for the tokens that may merge.
    return order, score.gather(1, order[:, :most, None].expand(-1, -1, score.size(2))).argmax(dim=2)
