"""Fuses all removed tokens into one, their sum weighted by score."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.flat.looks import may_write
from tokengraph.flat.segment import TINY, as_type
from tokengraph.flat.tables import counting, equal_ptr, ones, table
from tokengraph.maps.hard import Assignment
from tokengraph.maps.soft import SoftAssignment
from tokengraph.select.parts.choices.best import among_best
from tokengraph.select.tokens import clamp_budget, valid_counts


def keep_and_fuse(score: Tensor, keep: int | list[int], mask: Tensor | None, average: bool) -> SoftAssignment:
    """Keeps the ``keep - 1`` best tokens and fuses the others; see :func:`tokengraph.select.topk.fuse_rest`."""
    budget = clamp_budget(keep, score, mask)
    if isinstance(budget, int) and mask is None and 1 < budget < score.size(1) and may_write(score):
        return _fuse_equal(score, budget, average)
    if isinstance(budget, list):
        counts = valid_counts(score, mask)
        single: int | list[int] = [k if k >= n else k - 1 for k, n in zip(budget, counts, strict=True)]
        last = torch.tensor(budget, dtype=torch.long, device=score.device)[:, None] - 1
    else:
        whole = budget >= score.size(1)
        single, last = (budget if whole else budget - 1), budget - 1
    kept = among_best(score, single, mask)
    hard = Assignment.from_dense(torch.where(kept, kept.cumsum(dim=1) - 1, last), budget, mask=mask)
    share = as_type(score, torch.float32)
    if average:
        share = _shares(share.masked_fill(kept if mask is None else kept | ~mask, 0.0))
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


def _fuse_equal(score: Tensor, keep: int, average: bool) -> SoftAssignment:
    """:func:`keep_and_fuse` where all images keep as many tokens, at least 2 and not all of them."""
    images, tokens = score.shape
    device = score.device
    kept = score.detach().argsort(dim=1, descending=True, stable=True)[:, : keep - 1].sort(dim=1)[0]
    ptr, cluster_ptr = (equal_ptr(images, n, device) for n in (tokens, keep))
    last = cluster_ptr[1:, None] - 1
    cluster = last.expand(-1, tokens).scatter(1, kept, _first_of_each(images, keep, str(device))).flatten()
    share = as_type(score, torch.float32)
    share = _shares(share.scatter(1, kept, 0.0)) if average else share
    weight, token = share.scatter(1, kept, 1.0).flatten(), counting(images * tokens, device)
    up = token, cluster, ones(images * tokens, device)
    return SoftAssignment(token, cluster, weight, token.numel(), images * keep, False, up, ptr, cluster_ptr)


def _shares(others: Tensor) -> Tensor:
    """Divides by the sum of each row ``[B, N]``, by its largest value first, because the sum of many may overflow."""
    others = others / others.detach().amax(dim=1, keepdim=True).clamp_min(TINY)
    return others / others.sum(dim=1, keepdim=True).clamp_min(TINY)


@table(256)
def _first_of_each(images: int, keep: int, device: str) -> Tensor:
    """Returns all clusters of each image but the last, ``[B, keep - 1]``."""
    return torch.arange(images * keep, device=device).view(images, keep)[:, :-1].contiguous()
