"""Prepares coarse tokens for pooling so that every input patch counts exactly once."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.adapters.coarse import Reader
from tokengraph.flat.layout import take_rows
from tokengraph.maps.lineage import Lineage


def pooled_over(trace: Reader, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Returns the tokens that a pooling over patches should read, and their weights.

    Args:
        trace: The record of the run that ``x`` comes from.
        x: Tokens after the last block, ``[B, P+n, C]``, or lifted ones, ``[B, P+N, C]``.

    Returns:
        The tokens: after merging ``[B, P+N, C]``, each patch with its cluster's features; otherwise ``x``. The weights
        of their patches, ``[B, N]`` or ``[B, n]``: False (0 while the strategy trains) at padding and at dropped
        tokens; ``None``: every patch counts.
    """
    lineage, decisions = trace.lineage(), trace.shares
    if x.size(1) != trace.num_prefix + lineage.now.width:
        dropped = lineage.coarse and not lineage.merged
        return _without_dropped(lineage, x, trace.num_prefix) if dropped else (x, None)  # already lifted
    if lineage.merged:
        return trace.lift_sequence(x), lineage.start.valid
    return x, decisions[-1] if decisions else lineage.now.valid


def _without_dropped(lineage: Lineage, x: Tensor, prefix: int) -> tuple[Tensor, Tensor | None]:
    """Lifted tokens ``[B, P+N, C]`` without dropped patches; or, if clusters were dropped, a mask of the others."""
    now = lineage.now
    if lineage.ancestor is not None:
        return torch.cat([x[:, :prefix], take_rows(x[:, prefix:], lineage.ancestor)], dim=1), now.valid
    ones = torch.ones(now.images, now.width, 1, dtype=torch.float32, device=x.device)
    return x, lineage.lift(ones).view(now.images, -1) > 0


def masked_mean(rows: Tensor, there: Tensor) -> Tensor:
    """Mean of ``rows [B, n, C]`` with weights ``there [B, n]``, which may need a gradient: ``[B, C]``."""
    weight = there.to(rows.dtype)[..., None]
    return (rows * weight).sum(dim=1) / weight.sum(dim=1).clamp_min(1.0)


def for_mean(trace: Reader, x: Tensor) -> Tensor:
    """Scales tokens so that the plain mean that a head takes over them counts every input patch once.

    Args:
        trace: The record of the run that ``x`` comes from.
        x: Tokens after the last block, ``[B, P+n, C]``.

    Returns:
        After merging ``[B, P+N, C]``, each patch with its cluster's features. Otherwise ``[B, P+n, C]``: padding, and
        tokens that were dropped while the strategy trains, are zeros, and the others are scaled up, so that the mean
        over all rows is the mean over the others.
    """
    prefix = trace.num_prefix
    x, there = pooled_over(trace, x)
    if there is None:
        return x
    weight = there.to(x.dtype)
    weight = weight * (weight.size(1) / weight.sum(dim=1, keepdim=True).clamp_min(1.0))
    return torch.cat([x[:, :prefix], x[:, prefix:] * weight[..., None]], dim=1)
