"""Ragged batches: flat rows with ``ptr`` to padded rows with a mask, and back."""

from __future__ import annotations

import torch
from torch import Tensor


def pad(x: Tensor, counts: list[int]) -> tuple[Tensor, Tensor]:
    """Lays flat rows ``[M, ...]`` out as ``[B, max(counts), ...]`` with zeros behind, and the mask ``[B, N]`` bool."""
    count = torch.tensor(counts, device=x.device, dtype=torch.long)
    mask = torch.arange(max(counts, default=0), device=x.device) < count[:, None]
    dense = x.new_zeros(*mask.shape, *x.shape[1:])
    dense[mask] = x
    return dense, mask


def spread(rows: Tensor, valid: Tensor) -> Tensor:
    """Flat rows ``[M, ...]`` laid out where ``valid [B, n]`` is True, zeros elsewhere: ``[B, n, ...]``."""
    return rows.new_zeros(*valid.shape, *rows.shape[1:]).masked_scatter(
        valid.view(*valid.shape, *[1] * (rows.dim() - 1)), rows
    )
