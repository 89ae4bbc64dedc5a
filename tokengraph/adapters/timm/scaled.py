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

    def watched(self, block: Any) -> dict[str, nn.Module]:
        """The projections; or ``norm1``, if the attention uses the projection's weights without calling it."""
        attn = block.attn
        if getattr(attn, "qkv", None) is None:
            return {"q": attn.q_proj, "k": attn.k_proj}
        return {"qkv": attn.qkv} if getattr(attn, "q_bias", None) is None else {"normed": block.norm1}


def queries(attn: Any, seen: dict[str, Tensor]) -> Tensor:
    """Rows of queries, ``[B, P+N, C]``, from the outputs that hooks kept."""
    return _rows(attn, seen, 0)


def keys(attn: Any, seen: dict[str, Tensor]) -> Tensor:
    """Rows of keys, ``[B, P+N, C]``."""
    return _rows(attn, seen, 1)


def _rows(attn: Any, seen: dict[str, Tensor], which: int) -> Tensor:
    if (name := "qk"[which]) in seen:
        return seen[name]
    if "qkv" in seen:
        return seen["qkv"].chunk(3, dim=2)[which]
    return F.linear(seen["normed"], attn.qkv.weight.chunk(3)[which], (attn.q_bias, attn.k_bias)[which])
