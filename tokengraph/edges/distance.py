"""Squared Euclidean distances by matrix products, kept accurate by a well-chosen origin."""

from __future__ import annotations

import torch
from torch import Tensor


def origin(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Each image's token nearest its mean, ``[B, 1, C]``: where to put zero before distances are taken by products.

    Distances stay the same, and ``|a|^2 + |b|^2 - 2ab`` loses far fewer digits. A token is used, not the mean itself,
    so that whole numbers stay whole and equal tokens become exact zeros: their ties stay exact.

    Args:
        x: ``[B, N, C]``, ``N >= 1``; where ``mask [B, N]`` is False it must be zero.
        mask: True where there is a token.

    Cost: three passes over ``x``, no copy of it.
    """
    if mask is None:
        mean = x.mean(dim=1, keepdim=True)
    else:
        mean = x.sum(dim=1, keepdim=True) / mask.sum(dim=1).clamp_min(1)[:, None, None]
    gap = torch.linalg.vector_norm(x, dim=-1).square() - 2.0 * torch.matmul(x, mean.transpose(1, 2)).squeeze(-1)
    if mask is not None:
        gap = gap.masked_fill(~mask, torch.inf)
    nearest = gap.argmin(dim=1)  # of |x - mean|^2 - |mean|^2
    return x.gather(1, nearest[:, None, None].expand(-1, 1, x.size(2)))


def recentre(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """``x [B, N, C]`` minus its :func:`origin`, in float32 or wider; zero where ``mask [B, N]`` is False."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if x.size(1) == 0:
        return x
    if mask is None:
        return x - origin(x)
    x = torch.where(mask[..., None], x, 0.0)
    return torch.where(mask[..., None], x - origin(x, mask), 0.0)


def squared_norm(x: Tensor) -> Tensor:
    """``|x|^2`` along the last axis; exact for whole numbers, which the square of a norm is not."""
    return (x * x).sum(dim=-1)


def squared_distance(a: Tensor, b: Tensor, a_norm: Tensor, b_norm: Tensor) -> Tensor:
    """``|a_i - b_j|^2`` for ``a [B, Q, C]`` and ``b [B, J, C]``, at least 0; ``[B, Q, J]``.

    Cost: one batched product and one pass; ``B Q J`` floats.
    """
    product = torch.baddbmm(b_norm[:, None, :], a, b.transpose(1, 2), alpha=-2.0)
    return product.add_(a_norm[..., None]).clamp_min_(0.0)
