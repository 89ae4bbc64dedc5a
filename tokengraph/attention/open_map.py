"""A mask object that makes a stock block compute its attention map, and lets a strategy read and edit the map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokengraph.attention.keep_mask import KeepMask
from tokengraph.attention.mask_object import MaskObject
from tokengraph.attention.size_bias import SizeBias
from tokengraph.flat.segment import as_type


class OpenMap(MaskObject):
    """Exposes the attention map of a block: pass it as ``attn_mask``.

    It is no tensor, but torch functions accept it. ``scaled_dot_product_attention`` then computes scores, softmax and
    values as separate steps, and ``(scores + mask).softmax(-1)`` goes through this object too, so both fused and plain
    attention give correct results. The edit runs after the softmax and before dropout.

    Args:
        seen: A dict that receives the edited map as ``seen["map"]``; ``None``: the map is not stored.
        edit: A function of the map ``[B, H, N, N]`` that returns the map to use; it must not write into its argument.
            ``None``: no edit.
        bias: Added to the scores, in the form of an ``attn_mask``: additive, or bool (True: attend).

    Cost: one ``[B, H, N, N]`` tensor each for scores, softmax and edit.

    Example:
        >>> mask = OpenMap(seen := {})
        >>> q = torch.zeros(1, 1, 2, 4)
        >>> torch.nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=mask).shape
        torch.Size([1, 1, 2, 4])
        >>> seen["map"].tolist()
        [[[[0.5, 0.5], [0.5, 0.5]]]]
    """

    def __init__(
        self,
        seen: dict[str, Tensor] | None = None,
        edit: Callable[[Tensor], Tensor] | None = None,
        bias: Tensor | KeepMask | SizeBias | None = None,
    ) -> None:
        self.seen = seen
        self.edit = edit
        self.bias = bias
        self.dtype = torch.float32 if bias is None or bias.dtype == torch.bool else bias.dtype

    def plus(self, scores: Tensor) -> OpenMap:
        """Returns the same mask with ``scores`` (or a second bias) added to its bias."""
        bias: Any = self.bias
        if bias is None:
            return OpenMap(self.seen, self.edit, scores)
        if bias.dtype == torch.bool:
            bias = torch.zeros_like(bias, dtype=scores.dtype).masked_fill(~bias, -torch.inf)
        return OpenMap(self.seen, self.edit, scores + bias)

    def softmax(self, dim: int = -1, dtype: torch.dtype | None = None) -> Tensor:
        """Computes the softmax of the scores that :meth:`plus` added, and edits and stores the map."""
        if dim not in (-1, 3):
            raise ValueError(f"Expected a softmax over keys, dim=-1 (got dim={dim}).")
        scores: Any = self.bias
        attention = scores.softmax(dim=-1) if dtype is None else scores.softmax(dim=-1, dtype=dtype)
        attention = attention if self.edit is None else self.edit(attention)
        if self.seen is not None:
            self.seen["map"] = attention
        return attention

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, *, scale: float | None, dropout_p: float, enable_gqa: bool
    ) -> Tensor:
        """Computes scores, softmax and values as separate steps."""
        if enable_gqa:
            groups = q.size(1) // k.size(1)
            k, v = (t.repeat_interleave(groups, dim=1) for t in (k, v))
        q = q * (q.size(-1) ** -0.5 if scale is None else scale)
        attention = self.plus(torch.matmul(q, k.transpose(-2, -1))).softmax(dim=-1)  # frees the scores
        attention = F.dropout(attention, dropout_p) if dropout_p else attention
        return torch.matmul(as_type(attention, v.dtype), v)


class MapSeen(Exception):  # noqa: N818  # no error
    """Leaves a block's attention half once its map is known."""


class OnlyMap(OpenMap):
    """An :class:`OpenMap` that stores the map and leaves the attention by :class:`MapSeen`: values are not mixed.

    Compiled code cannot be left; there the map is stored, and what follows is not used and taken out.
    """

    def plus(self, scores: Tensor) -> OnlyMap:
        """Returns the same mask with ``scores`` (or a second bias) added to its bias."""
        both = super().plus(scores)
        return OnlyMap(both.seen, both.edit, both.bias)

    def softmax(self, dim: int = -1, dtype: torch.dtype | None = None) -> Tensor:
        """Stores the softmax of the scores and leaves.

        Raises:
            MapSeen: In eager mode.
        """
        attention = super().softmax(dim, dtype)
        if torch.compiler.is_compiling():
            return attention
        raise MapSeen
