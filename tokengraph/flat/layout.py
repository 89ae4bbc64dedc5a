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


def flat_ids(index: Tensor, tokens: int, mask: Tensor | None, counts: Tensor | None) -> Tensor:
    """Token numbers within each image ``[B, K]`` as flat ids ``[sum K_b]`` over the True tokens of ``mask [B, N]``.

    ``counts [B]`` says how many of each row's K numbers there are; ``None``: all.
    """
    images, width = index.shape
    ids = torch.arange(images * tokens, device=index.device) if mask is None else mask.flatten().cumsum(0) - 1
    flat = ids.view(images, tokens).gather(1, index)
    if counts is not None:
        flat = flat[torch.arange(width, device=index.device) < counts[:, None]]
    return flat.flatten()


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows ``x[b, index[b]]``: ``[B, n, C]`` and ``[B, k]`` to ``[B, k, C]``; on flat rows, much faster than gather."""
    images, count = x.shape[:2]
    shift = torch.arange(images, device=x.device)[:, None] * count
    return x.flatten(0, 1).index_select(0, (index + shift).flatten()).view(images, index.size(1), *x.shape[2:])
