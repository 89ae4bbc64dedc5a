"""Ragged batches: converts flat rows with counts to padded rows with a mask, and back."""

from __future__ import annotations

import torch
from torch import Tensor


def pad(x: Tensor, counts: list[int]) -> tuple[Tensor, Tensor]:
    """Pads flat rows ``[M, ...]`` to ``[B, N, ...]`` with zeros at the end, N = ``max(counts)``.

    Also returns the mask ``[B, N]`` bool, True at real rows.
    """
    count = torch.tensor(counts, device=x.device, dtype=torch.long)
    mask = torch.arange(max(counts, default=0), device=x.device) < count[:, None]
    dense = x.new_zeros(*mask.shape, *x.shape[1:])
    dense[mask] = x
    return dense, mask


def spread(rows: Tensor, valid: Tensor) -> Tensor:
    """Writes flat rows ``[M, ...]`` where ``valid [B, n]`` is True, zeros elsewhere: ``[B, n, ...]``."""
    return rows.new_zeros(*valid.shape, *rows.shape[1:]).masked_scatter(
        valid.view(*valid.shape, *[1] * (rows.dim() - 1)), rows
    )


def flat_ids(index: Tensor, tokens: int, mask: Tensor | None, counts: Tensor | None) -> Tensor:
    """Turns token numbers within each image ``[B, K]`` into flat ids ``[sum K_b]``.

    Flat ids count the True tokens of ``mask [B, N]``, or all ``tokens`` of each image if ``mask`` is ``None``.
    ``counts [B]`` says how many of the K numbers of each row to use; ``None``: all.
    """
    images, width = index.shape
    ids = torch.arange(images * tokens, device=index.device) if mask is None else mask.flatten().cumsum(0) - 1
    flat = ids.view(images, tokens).gather(1, index)
    if counts is not None:
        flat = flat[torch.arange(width, device=index.device) < counts[:, None]]
    return flat.flatten()
