"""Squared Euclidean distances by matrix products, kept accurate by a well-chosen origin."""

from __future__ import annotations

import torch
from torch import Tensor


def recentre(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Moves each image's origin to its token nearest the mean, in float32 or wider.

    Distances stay the same, and the product form ``|a|^2 + |b|^2 - 2ab`` loses far fewer digits. A token is used, not
    the mean itself, so that whole numbers stay whole and equal tokens become exact zeros: their ties stay exact.

    Args:
        x: ``[B, N, C]``.
        mask: ``[B, N]`` bool, True where there is a token; the rest becomes zero.

    Cost: four passes over ``x``.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if x.size(1) == 0:
        return x
    if mask is None:
        mean = x.mean(dim=1, keepdim=True)
    else:
        x = torch.where(mask[..., None], x, 0.0)
        mean = x.sum(dim=1, keepdim=True) / mask.sum(dim=1).clamp_min(1)[:, None, None]
    gap = squared_norm(x) - 2.0 * torch.matmul(x, mean.transpose(1, 2)).squeeze(-1)  # |x - mean|^2 - |mean|^2
    if mask is not None:
        gap = gap.masked_fill(~mask, torch.inf)
    origin = gap.argmin(dim=1)
    x = x - x.gather(1, origin[:, None, None].expand(-1, 1, x.size(2)))
    return x if mask is None else torch.where(mask[..., None], x, 0.0)


def squared_norm(x: Tensor) -> Tensor:
    """``|x|^2`` along the last axis."""
    return torch.linalg.vector_norm(x, dim=-1).square() if x.numel() > 1 << 24 else (x * x).sum(dim=-1)


def squared_distance(a: Tensor, b: Tensor, a_norm: Tensor, b_norm: Tensor) -> Tensor:
    """``|a_i - b_j|^2`` for ``a [B, Q, C]`` and ``b [B, J, C]``, at least 0; ``[B, Q, J]``.

    Cost: one batched product and one pass; ``B Q J`` floats.
    """
    product = torch.baddbmm(b_norm[:, None, :], a, b.transpose(1, 2), alpha=-2.0)
    return product.add_(a_norm[..., None]).clamp_min_(0.0)
