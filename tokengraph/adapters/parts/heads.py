"""Rows of a model's own projections as attention heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokengraph.attention.stats import AttentionStats


def split_heads(x: Tensor, *, heads: int = -1, width: int = -1) -> Tensor:
    """``[B, N, heads * width]`` as ``[B, heads, N, width]``; one of both numbers will do."""
    return x.reshape(*x.shape[:2], *_both(x.size(2), heads, width)).transpose(1, 2)


def split_qkv(x: Tensor, heads: int) -> Tensor:
    """``[B, N, 3 * heads * width]`` of one projection as queries, keys and values, ``[3, B, heads, N, width]``."""
    return x.reshape(*x.shape[:2], 3, *_both(x.size(2) // 3, heads, -1)).permute(2, 0, 3, 1, 4)


def _both(channels: int, heads: int, width: int) -> tuple[int, int]:
    """Returns heads and width; one is -1. No ``-1`` reaches ``reshape``, which cannot place it in an empty batch."""
    return (heads, channels // heads) if width < 0 else (channels // width, width)


def statistics_of_qkv(
    qkv: Tensor,
    heads: int,
    scale: float,
    num_prefix: int,
    bias: Tensor | None,
    norms: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] | None = None,
) -> AttentionStats:
    """What a strategy may read of attention, from the output ``[B, N, 3 * heads * width]`` of one projection.

    Args:
        qkv: Output of the projection of queries, keys and values.
        heads: Number of heads.
        scale: Factor of the logits.
        num_prefix: Tokens in front of the patches.
        bias: On the logits.
        norms: Of queries and of keys, ``[B, heads, N, width]``; ``None``: none.
    """

    def project() -> tuple[Tensor, Tensor]:
        q, k, _ = split_qkv(qkv, heads)
        return (q, k) if norms is None else (norms[0](q), norms[1](k))

    return AttentionStats(project, scale, num_prefix, bias, values=lambda: split_qkv(qkv, heads)[2])


def query_of_first(norm: nn.Module, qkv: Any, heads: int, x: Tensor) -> Callable[[], Tensor] | None:
    """How the first token's query meets every token's key, mean over heads, by the weights of one fused projection.

    Returns:
        A function that returns ``[B, n]`` float32 for ``x [B, n, C]``; ``None`` unless the projection is a plain linear
        layer. It multiplies the query by the weights of the keys, not the tokens: ``n C + 2 C^2``, not ``n C^2``.
    """
    if type(qkv) is not nn.Linear or type(qkv.weight) not in (Tensor, nn.Parameter):
        return None

    @torch.no_grad()
    def logits() -> Tensor:
        rows, weight = norm(x).float(), qkv.weight.float()
        with torch.autocast(x.device.type, enabled=False):
            width = weight.size(0) // 3
            bias = weight.new_zeros(3 * width) if qkv.bias is None else qkv.bias.float()
            query = F.linear(rows[:, 0], weight[:width], bias[:width])
            turned = query @ weight[width : 2 * width]
            return (torch.matmul(rows, turned[..., None])[..., 0] + query @ bias[width : 2 * width, None]) / heads

    return logits
