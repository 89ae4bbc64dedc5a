"""Assigns tokens to destinations by a softmax of cosines, or to the nearest."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.flat.faint import drop_faint
from tokengraph.flat.layout import take_rows
from tokengraph.maps.hard import Assignment
from tokengraph.maps.soft import SoftAssignment


def to_centers(
    x: Tensor, centers: Tensor, budget: int | list[int], scale: float, mask: Tensor | None
) -> Assignment | SoftAssignment:
    """The map of tokens ``x [B, N, C]`` to ``centers [B, most]`` by a softmax of cosines; hard by an infinite scale."""
    most = centers.size(1)
    alone = spare = None
    if isinstance(budget, list):
        each = torch.tensor(budget, device=x.device)[:, None]
        spare = torch.arange(most, device=x.device) >= each
        counts = x.size(1) if mask is None else mask.sum(dim=1, keepdim=True)
        there = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
        in_order = (~there).long().argsort(dim=1, stable=True)[:, :most]
        alone = each == counts  # an image that keeps all its tokens keeps their order
        centers = torch.where(alone, in_order, centers)
    logits = cosines(x, centers)
    if spare is not None:
        logits = logits.masked_fill((spare & ~spare.all(dim=1, keepdim=True))[:, None], -torch.inf)
    if scale == torch.inf:
        return Assignment.from_dense(_nearest(logits, centers, alone), budget, mask=mask, centers=centers)
    weight = drop_faint((scale * logits).softmax(dim=2)) if scale else logits.isfinite().float()
    weight = weight if scale else weight / weight.sum(dim=2, keepdim=True)
    if alone is not None:
        own = centers[:, None] == torch.arange(x.size(1), device=x.device)[:, None]
        weight = torch.where(alone[..., None], own.to(weight.dtype), weight)
    return SoftAssignment.from_matrix(weight, budget, mask=mask, centers=centers, lossless=True)


def cosines(x: Tensor, centers: Tensor | None, rows: Tensor | None = None) -> Tensor:
    """Cosines of tokens ``[B, N, C]`` with ``rows [B, M, C]`` or their own at ``centers [B, M]``, with gradient."""
    x = x.float()
    to = take_rows(x, centers) if rows is None and centers is not None else rows
    assert to is not None

    def unit(rows: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(rows, dim=2, keepdim=True)
        return rows / torch.where(length > 0, length, 1.0)

    return torch.matmul(unit(x), unit(to.float()).transpose(1, 2))


def _nearest(logits: Tensor, centers: Tensor, alone: Tensor | None) -> Tensor:
    """The most similar destination of each token, ``[B, N]``; a destination belongs to itself."""
    nearest = logits.detach().argmax(dim=2)
    own = torch.arange(centers.size(1), device=centers.device).expand_as(centers)
    if alone is None:
        return nearest.scatter(1, centers, own)
    finite = logits[:, 0].isfinite()  # spare destinations repeat others
    last = torch.where(finite, centers, logits.size(1))
    return torch.cat([nearest, nearest.new_zeros(nearest.size(0), 1)], dim=1).scatter(1, last, own)[:, :-1]
