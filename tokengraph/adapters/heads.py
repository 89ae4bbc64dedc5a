"""Attention heads of a model's own projections, for masks and statistics that its attention does not give."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor


def split_heads(x: Tensor, *, heads: int = -1, width: int = -1) -> Tensor:
    """``[B, N, heads * width]`` as ``[B, heads, N, width]``; one of both numbers will do."""
    return x.unflatten(2, (heads, width)).transpose(1, 2)


def attention_under(attention: Any, normed: Tensor, mask: Any, dropout: float) -> Tensor:
    """What an older attention of transformers, which takes no mask, would be with ``mask`` added to its logits.

    Args:
        attention: Holds ``attention.query``, ``key`` and ``value``, and ``output``.
        normed: ``[B, N, C]``.
        mask: As ``scaled_dot_product_attention`` takes it.
        dropout: Of the weights, while training.

    Returns:
        ``[B, N, C]``.
    """
    inner, width = attention.attention, attention.attention.attention_head_size
    q, k, v = (split_heads(project(normed), width=width) for project in (inner.query, inner.key, inner.value))
    dropout = dropout if inner.training else 0.0
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=width**-0.5)
    return attention.output(y.transpose(1, 2).flatten(2), normed)
