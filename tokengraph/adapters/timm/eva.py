"""timm's rotary and sub-norm transformers: EVA, EVA-02, DINOv3, Perception Encoder and others of class ``Eva``."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from tokengraph.adapters.base import is_a
from tokengraph.adapters.coarse import CoarseBlock
from tokengraph.adapters.parts.heads import split_heads
from tokengraph.adapters.parts.rotary import coarse_tables
from tokengraph.adapters.timm.scaled import GammaBlocks, keys, queries, values
from tokengraph.attention.keep_mask import KeepMask
from tokengraph.attention.stats import AttentionStats
from tokengraph.maps.lineage import Lineage

ORIGIN = "timm.models.eva"


class EvaBlock(CoarseBlock):
    """``timm.models.eva.EvaBlock`` that can coarsen its tokens."""

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Takes ``[B, P+n, C]``; ``rope`` and ``attn_mask`` are over the uncoarsened sequence."""
        if is_causal:
            raise ValueError("Expected is_causal=False (got True): clusters have no order in time.")
        return self.coarse(x, attn_mask, rope=rope)


class TimmEva(GammaBlocks):
    """timm's ``Eva`` with pre-norm ``EvaBlock``. Rotary tables are coarsened with the tokens."""

    family = "timm Eva (EVA, EVA-02, DINOv3, Perception Encoder, other rotary models) with EvaBlock"
    block_mixin = EvaBlock

    def serves(self, model: Any) -> bool:
        """Returns whether the model is an ``Eva``."""
        return is_a(model, ORIGIN, "Eva")

    def blocks(self, model: Any) -> list[nn.Module]:
        """``model.blocks``, all of class ``EvaBlock``."""
        blocks: list[nn.Module] = list(model.blocks)
        for i, block in enumerate(blocks):
            if not is_a(block, ORIGIN, "EvaBlock"):
                raise ValueError(
                    f"Expected blocks of class EvaBlock (got {type(block).__name__} at {i}). A post-norm block cannot "
                    "be coarsened between attention and MLP."
                )
        return blocks

    def attend(self, block: Any, x: Tensor, mask: Tensor | KeepMask | None, **side: Any) -> Tensor:
        """``x + drop_path1(gamma_1 * attn(norm1(x)))``."""
        y = block.attn(block.norm1(x), rope=side.get("rope"), attn_mask=mask)
        return x + block.drop_path1(y if block.gamma_1 is None else block.gamma_1 * y)

    def statistics(
        self, block: Any, kept: dict[str, Tensor], num_prefix: int, bias: Tensor | None, side: dict[str, Any]
    ) -> AttentionStats:
        """From the outputs of the projections: keys for matching before the rotation, attention after it."""
        attn: Any = block.attn
        rope, shared = side.get("rope"), getattr(attn, "num_kv_heads", attn.num_heads)  # several heads may share keys

        def heads_of_keys() -> Tensor:
            return attn.k_norm(split_heads(keys(attn, kept), heads=shared))

        def project() -> tuple[Tensor, Tensor]:
            """Returns queries and keys after the rotation, keys once for each head of queries."""
            q, k = attn.q_norm(split_heads(queries(attn, kept), heads=attn.num_heads)), heads_of_keys()
            if rope is not None:
                rotate = sys.modules["timm.layers.pos_embed_sincos"].apply_rot_embed_cat
                half = {"half": True} if getattr(attn, "rotate_half", False) else {}
                q, k = (
                    torch.cat([t[:, :, :num_prefix], rotate(t[:, :, num_prefix:], rope, **half)], dim=2) for t in (q, k)
                )
            return q, k.repeat_interleave(q.size(1) // k.size(1), dim=1)

        def heads_of_values() -> Tensor:
            return split_heads(values(attn, kept), heads=shared).repeat_interleave(attn.num_heads // shared, dim=1)

        return AttentionStats(project, float(attn.scale), num_prefix, bias, keys=heads_of_keys, values=heads_of_values)

    def carry(self, side: dict[str, Any], lineage: Lineage, block: Any) -> dict[str, Any]:
        """Coarsens the rotary tables with the tokens."""
        rope = side.get("rope")
        if rope is None:
            return side
        mixed = hasattr(sys.modules["timm.layers"], "RotaryEmbeddingMixed")  # three sides: one table for each head
        if rope.dim() > (3 if mixed else 2):
            raise ValueError(
                "Expected rotary tables of the whole grid (got those of patch dropout, which acts in train mode). Make "
                "the model with patch_drop_rate=0, or set model.patch_drop = None."
            )
        sin, cos = rope.chunk(2, dim=-1)
        cos, sin = coarse_tables((cos, sin), lineage)
        return {**side, "rope": torch.cat([sin, cos], dim=-1)}
