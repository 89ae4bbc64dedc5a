"""Rows of a model's own projections as attention heads."""

from __future__ import annotations

from torch import Tensor


def split_heads(x: Tensor, *, heads: int = -1, width: int = -1) -> Tensor:
    """``[B, N, heads * width]`` as ``[B, heads, N, width]``; one of both numbers will do."""
    return x.reshape(*x.shape[:2], *_both(x.size(2), heads, width)).transpose(1, 2)


def split_qkv(x: Tensor, heads: int) -> Tensor:
    """``[B, N, 3 * heads * width]`` of one projection as queries, keys and values, ``[3, B, heads, N, width]``."""
    return x.reshape(*x.shape[:2], 3, *_both(x.size(2) // 3, heads, -1)).permute(2, 0, 3, 1, 4)


def _both(channels: int, heads: int, width: int) -> tuple[int, int]:
    """Returns heads and width; one is -1. No ``-1`` reaches ``reshape``, which cannot place it in an empty batch."""
    return (heads, channels // heads) if width < 0 else (channels // width, width)
