"""A mask object by which a stock block mixes its values by a map that is given, and not by its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tokengraph.attention.mask_object import MaskObject


class GivenMap(MaskObject):
    """Stands in for the softmax of a block's attention: pass it as ``attn_mask``.

    The block computes queries, keys and scores as ever, and they count for nothing; values are those of its tokens.

    Args:
        attention: The map ``[B, H, N, N]``, rows that sum to one.
    """

    def __init__(self, attention: Tensor) -> None:
        self.map = attention
        self.dtype = attention.dtype

    def plus(self, scores: Tensor) -> GivenMap:
        """Scores are replaced."""
        return self

    def softmax(self, dim: int = -1, dtype: torch.dtype | None = None) -> Tensor:
        """The map itself."""
        return self.map if dtype is None else self.map.to(dtype)

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, *, scale: float | None, dropout_p: float, enable_gqa: bool
    ) -> Tensor:
        """The map times the values."""
        if enable_gqa:
            v = v.repeat_interleave(q.size(1) // k.size(1), dim=1)
        return torch.matmul(F.dropout(self.map, dropout_p).to(v.dtype), v)
