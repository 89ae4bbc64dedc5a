"""Fuses all removed tokens into one, their sum weighted by score."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.flat.segment import TINY
from tokengraph.maps.hard import Assignment
from tokengraph.maps.soft import SoftAssignment
from tokengraph.select.parts.choices.best import among_best
from tokengraph.select.tokens import clamp_budget, valid_counts


def keep_and_fuse(score: Tensor, keep: int | list[int], mask: Tensor | None, average: bool) -> SoftAssignment:
    """Keeps the ``keep - 1`` best tokens and fuses the others; see :func:`tokengraph.select.topk.fuse_rest`."""
    budget = clamp_budget(keep, score, mask)
    if isinstance(budget, list):
        counts = valid_counts(score, mask)
        single: int | list[int] = [k if k >= n else k - 1 for k, n in zip(budget, counts, strict=True)]
        last = torch.tensor(budget, dtype=torch.long, device=score.device)[:, None] - 1
    else:
        whole = budget >= score.size(1)
        single, last = (budget if whole else budget - 1), budget - 1
    kept = among_best(score, single, mask)
    hard = Assignment.from_dense(torch.where(kept, kept.cumsum(dim=1) - 1, last), budget, mask=mask)
    share = score.float()
    if average:  # divides by the largest first, because the sum of many may overflow
        others = share.masked_fill(kept if mask is None else kept | ~mask, 0.0)
        others = others / others.detach().amax(dim=1, keepdim=True).clamp_min(TINY)
        share = others / others.sum(dim=1, keepdim=True).clamp_min(TINY)
    weight = torch.where(kept, 1.0, share)
    weight = weight.flatten() if mask is None else weight[mask]
    token = torch.arange(hard.num_tokens, device=score.device)
    up = (token, hard.cluster, torch.ones_like(weight, requires_grad=False))
    return SoftAssignment(
        token,
        hard.cluster,
        weight,
        hard.num_tokens,
        hard.num_clusters,
        False,
        up,
        hard.ptr,
        hard.cluster_ptr,
        counts=hard.counts,
    )
