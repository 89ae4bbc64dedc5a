"""Blocks of timm's EVA and BEiT, whose halves have an optional scale ``gamma``."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tokengraph.adapters.timm.vit import TimmViT


class GammaBlocks(TimmViT):
    """Base of the adapters for models with such blocks."""

    def feed(self, block: Any, x: Tensor) -> Tensor:
        """``x + drop_path2(gamma_2 * mlp(norm2(x)))``."""
        y = block.mlp(block.norm2(x))
        return x + block.drop_path2(y if block.gamma_2 is None else block.gamma_2 * y)

    def kept(self, block: Any) -> dict[str, nn.Module]:
        """The projections; or ``norm1``, if the attention uses the projection's weights without calling it."""
        attn = block.attn
        if getattr(attn, "qkv", None) is None:
            return {"q": attn.q_proj, "k": attn.k_proj, "v": attn.v_proj}
        return {"qkv": attn.qkv} if getattr(attn, "q_bias", None) is None else {"normed": block.norm1}


def queries(attn: Any, kept: dict[str, Tensor]) -> Tensor:
    """Rows of queries, ``[B, P+N, C]``, from the outputs that hooks kept."""
    return _rows(attn, kept, 0)


def keys(attn: Any, kept: dict[str, Tensor]) -> Tensor:
    """Rows of keys, ``[B, P+N, C]``."""
    return _rows(attn, kept, 1)


def values(attn: Any, kept: dict[str, Tensor]) -> Tensor:
    """Rows of values, ``[B, P+N, C]``."""
    return _rows(attn, kept, 2)


def _rows(attn: Any, kept: dict[str, Tensor], which: int) -> Tensor:
    if (name := "qkv"[which]) in kept:
        return kept[name]
    if "qkv" in kept:
        return kept["qkv"].chunk(3, dim=2)[which]
    return F.linear(kept["normed"], attn.qkv.weight.chunk(3)[which], (attn.q_bias, attn.k_bias, attn.v_bias)[which])
