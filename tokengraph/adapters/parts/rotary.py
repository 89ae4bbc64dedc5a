"""Rotary tables for coarse tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokengraph.maps.lineage import Lineage


def coarse_tables(tables: Sequence[Tensor], lineage: Lineage) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the current tokens, out of those of the input patches.

    A token that descends from one patch (pruning, cluster centres) keeps that patch's angles. A merged token gets the
    circular mean of its members' angles, frequency by frequency: the direction of the mean of ``(cos, sin)``. No paper
    defines this.

    Args:
        tables: Cosine and sine, ``[N, D]``, or ``[H, N, D]`` where heads differ.
        lineage: The current tokens.

    Returns:
        Cosine and sine, each ``[B, 1 or H, n, D]``.

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
