"""Rotary tables for coarse tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tokengraph.ragged import spread
from tokengraph.soft import SoftAssignment
from tokengraph.state import State


def coarse_tables(tables: Sequence[Tensor], state: State) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the tokens of now, out of those of the input patches.

    Where each token descends from one patch (pruning, cluster centres) it keeps that patch's angles. Merged tokens get
    the circular mean of their members' angles, frequency by frequency: the direction of the mean of ``(cos, sin)``.

    Args:
        tables: Cosine and sine, ``[N, D]``.
        state: The tokens of now.

    Returns:
        Two of ``[B, 1, n, D]``, that spread over heads.
    """
    cos, sin = tables
    if state.patch is not None:
        return cos[state.patch][:, None], sin[state.patch][:, None]
    rows, size = torch.stack([cos, sin], dim=1).float().expand(state.images, -1, -1, -1).flatten(0, 1), None
    for step in state.maps:
        step = replace(step, normalize=True) if isinstance(step, SoftAssignment) else step
        rows, size = step.reduce(rows, size)
    rows = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(1e-6)
    dense = rows.unflatten(0, (state.images, -1)) if state.valid is None else spread(rows, state.valid)
    return dense[:, :, 0].to(cos.dtype)[:, None], dense[:, :, 1].to(sin.dtype)[:, None]
