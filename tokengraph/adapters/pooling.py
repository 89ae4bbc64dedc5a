"""Coarse tokens on their way into a mean over patches."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.trace import Trace


def for_mean(trace: Trace, x: Tensor) -> Tensor:
    """Tokens whose plain mean over patches is the right one, for heads that take it by themselves.

    Args:
        trace: The record of the run that ``x`` comes from.
        x: Tokens after the last block, ``[B, P+n, C]``.

    Returns:
        ``[B, P+N, C]``, each patch with its cluster's features, where tokens were merged; ``[B, P+n, C]`` otherwise:
        where some are padding, or not kept while the strategy trains, these are zeros and the others scaled, so that
        the mean is over those that are there.
    """
    state, prefix = trace.state(), trace.num_prefix
    if x.size(1) != prefix + state.count:
        return x  # every patch is there already
    if state.coarse and not any(step.lossy for step in state.maps):
        return trace.lift_sequence(x)
    there = state.decisions[-1] if state.decisions else state.valid
    if there is None:
        return x
    weight = there.to(x.dtype)
    weight = weight * (state.count / weight.sum(dim=1, keepdim=True).clamp_min(1.0))
    return torch.cat([x[:, :prefix], x[:, prefix:] * weight[..., None]], dim=1)
