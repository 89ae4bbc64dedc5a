"""Keeps the tokens with the highest scores and drops the others."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.flat.looks import may_write
from tokengraph.flat.tables import counting, equal_ptr, starts
from tokengraph.maps.hard import Assignment
from tokengraph.select.tokens import below, clamp_budget, valid_counts


def among_best(score: Tensor, keep: int | list[int], mask: Tensor | None) -> Tensor:
    """Returns whether each token is among the ``keep`` best of its image, ``[B, N]`` bool; ties to the lower index."""
    score = score.detach() if mask is None else score.detach().masked_fill(~mask, -torch.inf)
    order = score.argsort(dim=1, descending=True, stable=True)
    place = torch.arange(score.size(1), device=score.device).expand_as(order)
    return below(torch.empty_like(order).scatter_(1, order, place), keep)


def _keep_equal(score: Tensor, keep: int, by_index: bool) -> Assignment:
    """:func:`keep_best` where all images keep as many tokens: the map is made from the kept ones."""
    images, tokens, total = *score.shape, score.size(0) * keep
    kept = score.detach().argsort(dim=1, descending=True, stable=True)[:, :keep]
    kept = kept.sort(dim=1)[0] if by_index else kept
    centers = (kept + starts(images, tokens, score.device)).flatten()
    number, drops = counting(total, score.device), keep < tokens
    cluster = torch.full((images * tokens,), total, dtype=torch.long, device=score.device)
    cluster.scatter_(0, centers, number)
    ptr, cluster_ptr = (equal_ptr(images, n, score.device) for n in (tokens, keep))
    return Assignment(cluster, total, drops, ptr, cluster_ptr, centers, single=True)


def keep_best(score: Tensor, keep: int | list[int], mask: Tensor | None, order: str = "index") -> Assignment:
    """Returns the map that keeps the ``keep`` best tokens by ``score [B, N]`` and drops the others.

    Args:
        score: ``[B, N]``; ties go to the lower index.
        keep: Tokens an image.
        mask: ``[B, N]`` bool, True where there is a token.
        order: ``"index"``, or ``"score"``: the best token first; an image that keeps all its tokens stays in order.
    """
    budget = clamp_budget(keep, score, mask)
    if isinstance(budget, int) and mask is None and may_write(score):
        return _keep_equal(score, budget, order == "index" or budget == score.size(1))
    most = max(budget, default=0) if isinstance(budget, list) else budget
    if order == "score" and (isinstance(budget, list) or budget < score.size(1)):
        score = score.detach() if mask is None else score.detach().masked_fill(~mask, -torch.inf)
        index = score.argsort(dim=1, descending=True, stable=True)
        place = torch.arange(score.size(1), device=score.device).expand_as(index)
        if isinstance(budget, list):
            whole = [k >= n for k, n in zip(budget, valid_counts(score, mask), strict=True)]
            behind = (~mask).long().argsort(dim=1, stable=True) if mask is not None else place
            index = torch.where(torch.tensor(whole, device=score.device)[:, None], behind, index)
        rank = torch.empty_like(index).scatter_(1, index, place)
        cluster = torch.where(below(rank, budget), rank, -1)
        index = index[:, :most]
    else:
        kept = among_best(score, budget, mask)
        cluster = torch.where(kept, kept.cumsum(dim=1) - 1, -1)
        index = (~kept).argsort(dim=1, stable=True)[:, :most]
    drops = isinstance(budget, list) or budget < score.size(1)
    return Assignment.from_dense(cluster, budget, mask=mask, drops=drops, centers=index, single=True)
