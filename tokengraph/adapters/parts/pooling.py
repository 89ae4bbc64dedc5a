"""Prepares coarse tokens for pooling so that every input patch counts exactly once."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.adapters.coarse import Reader


def pooled_over(trace: Reader, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """The tokens that a pooling of patches should see, and which of their patches are there.

    Args:
        trace: The record of the run that ``x`` comes from.
        x: Tokens after the last block, ``[B, P+n, C]``.

    Returns:
        ``[B, P+N, C]``, each patch with its cluster's features, where tokens were merged; ``x`` otherwise. And
        ``[B, N]`` or ``[B, n]``: False, or 0 in a strategy that trains, at padding and at what was not kept; ``None``:
        all are there.
    """
    lineage, decisions = trace.lineage(), trace.decisions
    if x.size(1) != trace.num_prefix + lineage.now.width:
        return x, None  # every patch is there already
    if lineage.merged:
        return trace.lift_sequence(x), lineage.start.valid
    return x, decisions[-1] if decisions else lineage.now.valid


def masked_mean(rows: Tensor, there: Tensor) -> Tensor:
    """Mean of ``rows [B, n, C]`` over those that are ``there [B, n]``, with a gradient to it: ``[B, C]``."""
    weight = there.to(rows.dtype)[..., None]
    return (rows * weight).sum(dim=1) / weight.sum(dim=1).clamp_min(1.0)


def for_mean(trace: Reader, x: Tensor) -> Tensor:
    """Tokens whose plain mean over patches is the right one, for heads that take it by themselves.

    Args:
        trace: The record of the run that ``x`` comes from.
        x: Tokens after the last block, ``[B, P+n, C]``.

    Returns:
        ``[B, P+N, C]``, each patch with its cluster's features, where tokens were merged; ``[B, P+n, C]`` otherwise:
        where some are padding, or not kept while the strategy trains, these are zeros and the others scaled, so that
        the mean is over those that are there.
    """
    prefix = trace.num_prefix
    x, there = pooled_over(trace, x)
    if there is None:
        return x
    weight = there.to(x.dtype)
    weight = weight * (weight.size(1) / weight.sum(dim=1, keepdim=True).clamp_min(1.0))
    return torch.cat([x[:, :prefix], x[:, prefix:] * weight[..., None]], dim=1)
