"""Rotary tables for coarse tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokengraph.maps.lineage import Lineage


def coarse_tables(tables: Sequence[Tensor], lineage: Lineage) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the current tokens, out of those of the input patches.

    Where each token descends from one patch (pruning, cluster centres) it keeps that patch's angles. Merged tokens get
    the circular mean of their members' angles, frequency by frequency: the direction of the mean of ``(cos, sin)``.
    This is our own choice.

    Args:
        tables: Cosine and sine, ``[N, D]``, or ``[H, N, D]`` where heads differ.
        lineage: The current tokens.

    Returns:
        Two of ``[B, 1 or H, n, D]``.

    Cost: one gather or reduction of ``[B, N, 2 H D]``.
    """
    cos, sin = (t if t.dim() == 3 else t[None] for t in tables)
    both = torch.stack([cos, sin]).permute(2, 0, 1, 3)  # [N, 2, H, D]
    if lineage.ancestor is not None:
        dense = both[lineage.ancestor]
    else:
        mean = lineage.averaged(both.float().expand(lineage.start.images, -1, -1, -1, -1).flatten(0, 1))
        dense = mean / torch.linalg.vector_norm(mean, dim=2, keepdim=True).clamp_min(1e-6)
    cos_now, sin_now = dense.to(cos.dtype).permute(2, 0, 3, 1, 4)
    return cos_now, sin_now
