"""timm's rotary and sub-norm transformers: EVA, EVA-02, DINOv3, Perception Encoder and others of class ``Eva``."""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokengraph.adapters.base import is_a
from tokengraph.adapters.block import CoarseBlock
from tokengraph.adapters.rotary import coarse_tables
from tokengraph.adapters.timm.vit import TimmViT
from tokengraph.nn.masked_attention import KeepMask
from tokengraph.select.attention import AttentionStats
from tokengraph.state import State

ORIGIN = "timm.models.eva"


class EvaBlock(CoarseBlock):
    """``timm.models.eva.EvaBlock`` with a coarsening in it."""

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Takes ``[B, P+n, C]``; ``rope`` and ``attn_mask`` are over the uncoarsened sequence."""
        if is_causal:
            raise ValueError("Expected is_causal=False (got True): clusters have no order in time.")
        return self.coarse(x, attn_mask, rope=rope)


class TimmEva(TimmViT):
    """timm's ``Eva`` with pre-norm ``EvaBlock``. Rotary tables follow the tokens."""

    family = "timm Eva (EVA, EVA-02, DINOv3, Perception Encoder, other rotary models) with EvaBlock"
    block_mixin = EvaBlock

    def serves(self, model: nn.Module) -> bool:
        """Whether ``Eva`` is among its classes."""
        return is_a(model, ORIGIN, "Eva")

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        """``model.blocks``, all of class ``EvaBlock``."""
        blocks: list[nn.Module] = list(model.blocks)  # type: ignore[arg-type]
        for i, block in enumerate(blocks):
            if not is_a(block, ORIGIN, "EvaBlock"):
                raise ValueError(
                    f"Expected blocks of class EvaBlock (got {type(block).__name__} at {i}). Blocks whose norms come "
                    "last have no place between the halves."
                )
        return blocks

    def attend(self, block: nn.Module, x: Tensor, mask: Tensor | KeepMask | None, **side: Any) -> Tensor:
        """``x + drop_path1(gamma_1 * attn(norm1(x)))``."""
        block_: Any = block
        y = block_.attn(block_.norm1(x), rope=side.get("rope"), attn_mask=mask)
        return x + block_.drop_path1(y if block_.gamma_1 is None else block_.gamma_1 * y)

    def feed(self, block: nn.Module, x: Tensor) -> Tensor:
        """``x + drop_path2(gamma_2 * mlp(norm2(x)))``."""
        block_: Any = block
        y = block_.mlp(block_.norm2(x))
        return x + block_.drop_path2(y if block_.gamma_2 is None else block_.gamma_2 * y)

    def watched(self, block: nn.Module) -> dict[str, nn.Module]:
        """``norm1``: what attention takes in. Its projection may be called as a function, which no hook sees."""
        return {"normed": block.norm1}  # type: ignore[dict-item]

    def statistics(
        self, block: nn.Module, seen: dict[str, Tensor], num_prefix: int, bias: Tensor | None, side: dict[str, Any]
    ) -> AttentionStats:
        """Queries and keys made again from the input; keys for matching before, attention after the rotation."""
        attn: Any = block.attn
        normed, rope = seen["normed"], side.get("rope")
        (w_q, b_q), (w_k, b_k) = _projections(attn)
        width = w_q.size(0) // int(attn.num_heads)

        def heads(weight: Tensor, offset: Tensor | None, norm: nn.Module) -> Tensor:
            x = F.linear(normed, weight, offset)
            return norm(x.unflatten(2, (-1, width)).transpose(1, 2))

        def project() -> tuple[Tensor, Tensor]:
            q, k = heads(w_q, b_q, attn.q_norm), heads(w_k, b_k, attn.k_norm)
            if rope is not None:
                rotate = sys.modules["timm.layers.pos_embed_sincos"].apply_rot_embed_cat
                half = {"half": True} if getattr(attn, "rotate_half", False) else {}
                q, k = (
                    torch.cat([t[:, :, :num_prefix], rotate(t[:, :, num_prefix:], rope, **half)], dim=2) for t in (q, k)
                )
            return q, k.repeat_interleave(q.size(1) // k.size(1), dim=1)

        def keys() -> Tensor:
            return heads(w_k, b_k, attn.k_norm)[:, :, num_prefix:].mean(dim=1)

        return AttentionStats(project, float(attn.scale), num_prefix, bias, keys=keys)

    def carry(self, side: dict[str, Any], state: State, block: nn.Module) -> dict[str, Any]:
        """Rotary tables follow the tokens."""
        rope = side.get("rope")
        if rope is None:
            return side
        if rope.dim() > 3:
            raise ValueError("Expected rotary tables of the whole grid (got those of a patch dropout). Turn it off.")
        sin, cos = rope.chunk(2, dim=-1)
        cos, sin = coarse_tables((cos, sin), state)
        return {**side, "rope": torch.cat([sin, cos], dim=-1)}


def _projections(attn: Any) -> tuple[tuple[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]:
    """Weight and bias of queries and of keys."""
    if attn.qkv is None:
        return (attn.q_proj.weight, attn.q_proj.bias), (attn.k_proj.weight, attn.k_proj.bias)
    weights = attn.qkv.weight.chunk(3)
    if attn.qkv.bias is not None:
        biases = attn.qkv.bias.chunk(3)
    else:
        biases = (getattr(attn, "q_bias", None), getattr(attn, "k_bias", None))
    return (weights[0], biases[0]), (weights[1], biases[1])
