"""timm's BEiT and BEiT v2: a relative position bias in every block, or one that all blocks share."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokengraph.adapters.base import is_a
from tokengraph.adapters.coarse import KEPT, SITE, CoarseBlock, CoarseSite
from tokengraph.adapters.parts.heads import split_heads, split_qkv
from tokengraph.adapters.parts.hooks import check_called_alone
from tokengraph.adapters.parts.pooling import for_mean
from tokengraph.adapters.parts.relative import coarse_bias, with_bias
from tokengraph.adapters.timm.scaled import GammaBlocks, keys, queries, values
from tokengraph.adapters.timm.vit import TimmModel
from tokengraph.attention.keep_mask import KeepMask
from tokengraph.attention.stats import AttentionStats
from tokengraph.maps.lineage import Lineage

ORIGIN = "timm.models.beit"


class BeitBlock(CoarseBlock):
    """``timm.models.beit.Block`` that can coarsen its tokens."""

    def forward(self, x: Tensor, shared_rel_pos_bias: Tensor | None = None) -> Tensor:
        """Takes ``[B, P+n, C]``; the bias ``[H, P+N, P+N]`` is over the uncoarsened sequence."""
        return self.coarse(x, shared_rel_pos_bias=shared_rel_pos_bias)


class BeitModel(TimmModel):
    """``timm.models.beit.Beit`` with coarsened blocks."""

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """As timm's, but averages as if every input patch had its cluster's features. ``x`` is of the last run."""
        site: CoarseSite = getattr(self, SITE)
        if self.global_pool == "avg":  # type: ignore[attr-defined]
            x = for_mean(site.trace, x)
        return super().forward_head(x, pre_logits)  # type: ignore[misc]


class TimmBeit(GammaBlocks):
    """timm's ``Beit``. The relative position bias is coarsened with the tokens.

    The stock attention runs until a mask or a coarse bias is needed. From then on its own weights go through
    ``scaled_dot_product_attention``, with the bias in the mask.
    """

    family = "timm Beit (BEiT, BEiT v2)"
    block_mixin = BeitBlock
    model_mixin = BeitModel

    def serves(self, model: Any) -> bool:
        """Returns whether the model is a ``Beit``."""
        return is_a(model, ORIGIN, "Beit")

    def blocks(self, model: Any) -> list[nn.Module]:
        """``model.blocks``, all of timm's BEiT ``Block``."""
        blocks: list[nn.Module] = list(model.blocks)
        for i, block in enumerate(blocks):
            if not is_a(block, ORIGIN, "Block"):
                raise ValueError(f"Expected blocks of BEiT's class Block (got {type(block).__name__} at {i}).")
        return blocks

    def attend(self, block: Any, x: Tensor, mask: Tensor | KeepMask | None, **side: Any) -> Tensor:
        """``x + drop_path1(gamma_1 * attn(norm1(x)))``, with ``side["relative"]`` as the bias of coarse tokens."""
        attn, y, shared = block.attn, block.norm1(x), side.get("shared_rel_pos_bias")
        if mask is None and side.get("relative") is None:
            y = attn(y, shared_rel_pos_bias=shared)
        else:
            y = _attention(block, y, with_bias(mask, _bias(attn, side)))
        return x + block.drop_path1(y if block.gamma_1 is None else block.gamma_1 * y)

    def carry(self, side: dict[str, Any], lineage: Lineage, block: Any) -> dict[str, Any]:
        """The bias of the block and of the model, together, between the current tokens."""
        whole = _bias(block.attn, side)
        if whole is None:
            return side
        trace = getattr(block, SITE).trace
        return {"relative": coarse_bias(whole, lineage, trace.num_prefix)}

    def tokens_to_check(self, block: Any) -> int:
        """The number of tokens that the block's bias is made for."""
        index = block.attn.relative_position_index
        return super().tokens_to_check(block) if index is None else index.size(0)

    def statistics(
        self, block: Any, kept: dict[str, Tensor], num_prefix: int, bias: Tensor | None, side: dict[str, Any]
    ) -> AttentionStats:
        """From the outputs of the projection, with the relative position bias."""
        attn: Any = block.attn

        def project() -> tuple[Tensor, Tensor]:
            return split_heads(queries(attn, kept), heads=attn.num_heads), heads_of_keys()

        def heads_of_keys() -> Tensor:
            return split_heads(keys(attn, kept), heads=attn.num_heads)

        def heads_of_values() -> Tensor:
            return split_heads(values(attn, kept), heads=attn.num_heads)

        plain = AttentionStats(project, float(attn.scale), num_prefix, keys=heads_of_keys, values=heads_of_values)
        return plain.with_bias(lambda: with_bias(bias, _bias(attn, side)))


def _bias(attn: Any, side: dict[str, Any]) -> Tensor | None:
    """The bias that attention adds: the coarse one, or the sum of the block's own and the model's."""
    if side.get("relative") is not None:
        return side["relative"]
    shared = side.get("shared_rel_pos_bias")
    if attn.relative_position_bias_table is None:
        return shared
    index = attn.relative_position_index  # heads first from the start saves the copy that timm makes
    own = attn.relative_position_bias_table.t().contiguous().index_select(1, index.flatten()).view(1, -1, *index.shape)
    return own if shared is None else own + shared


def _attention(block: Any, x: Tensor, mask: Any) -> Tensor:
    """Computes the stock attention with ``mask``, which holds the bias, in place of its own bias."""
    attn = block.attn
    check_called_alone(attn, "its bias is for all patches")
    offset = None if attn.q_bias is None else torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
    rows = attn.qkv(x) if offset is None else F.linear(x, attn.qkv.weight, offset)
    kept = block.__dict__.get(KEPT)
    if kept is not None:
        kept["qkv"] = rows
    q, k, v = split_qkv(rows, attn.num_heads)
    dropout = attn.attn_drop.p if attn.training else 0.0
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=attn.scale)
    return attn.proj_drop(attn.proj(y.transpose(1, 2).flatten(2)))
