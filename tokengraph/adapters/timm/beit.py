"""timm's BEiT and BEiT v2: a relative position bias in every block, or one that all blocks share."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokengraph.adapters.base import is_a
from tokengraph.adapters.block import CoarseBlock
from tokengraph.adapters.pooling import for_mean
from tokengraph.adapters.relative import RelativeStats, coarse_bias, with_bias
from tokengraph.adapters.site import SITE, STASH, Site
from tokengraph.adapters.timm.vit import TimmModel, TimmViT
from tokengraph.nn.masked_attention import KeepMask
from tokengraph.select.attention import AttentionStats
from tokengraph.state import State

ORIGIN = "timm.models.beit"


class BeitBlock(CoarseBlock):
    """``timm.models.beit.Block`` with a coarsening in it."""

    def forward(self, x: Tensor, shared_rel_pos_bias: Tensor | None = None) -> Tensor:
        """Takes ``[B, P+n, C]``; the bias ``[H, P+N, P+N]`` is over the uncoarsened sequence."""
        return self.coarse(x, shared_rel_pos_bias=shared_rel_pos_bias)


class BeitModel(TimmModel):
    """``timm.models.beit.Beit`` around coarsened blocks."""

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """As timm's; averages as if every input patch had its cluster's features. ``x`` are of the last run."""
        site: Site = getattr(self, SITE)
        if self.global_pool == "avg":  # type: ignore[attr-defined]
            x = for_mean(site.trace, x)
        return super().forward_head(x, pre_logits)  # type: ignore[misc]


class TimmBeit(TimmViT):
    """timm's ``Beit``. The relative position bias follows the tokens.

    While nothing is coarse the stock attention runs. Then its own weights go through
    ``scaled_dot_product_attention``, with the coarse bias in the mask.
    """

    family = "timm Beit (BEiT, BEiT v2)"
    block_mixin = BeitBlock
    model_mixin = BeitModel

    def serves(self, model: nn.Module) -> bool:
        """Whether ``Beit`` is among its classes."""
        return is_a(model, ORIGIN, "Beit")

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        """``model.blocks``, all of timm's BEiT ``Block``."""
        blocks: list[nn.Module] = list(model.blocks)  # type: ignore[arg-type]
        for i, block in enumerate(blocks):
            if not is_a(block, ORIGIN, "Block"):
                raise ValueError(f"Expected blocks of BEiT's class Block (got {type(block).__name__} at {i}).")
        return blocks

    def attend(self, block: nn.Module, x: Tensor, mask: Tensor | KeepMask | None, **side: Any) -> Tensor:
        """``x + drop_path1(gamma_1 * attn(norm1(x)))``, the bias of coarse tokens as ``relative``."""
        block_: Any = block
        attn, y, shared = block_.attn, block_.norm1(x), side.get("shared_rel_pos_bias")
        if mask is None and side.get("relative") is None:
            y = attn(y, shared_rel_pos_bias=shared)
        else:
            y = _attention(block, y, with_bias(mask, _bias(attn, side)))
        return x + block_.drop_path1(y if block_.gamma_1 is None else block_.gamma_1 * y)

    def feed(self, block: nn.Module, x: Tensor) -> Tensor:
        """``x + drop_path2(gamma_2 * mlp(norm2(x)))``."""
        block_: Any = block
        y = block_.mlp(block_.norm2(x))
        return x + block_.drop_path2(y if block_.gamma_2 is None else block_.gamma_2 * y)

    def carry(self, side: dict[str, Any], state: State, block: nn.Module) -> dict[str, Any]:
        """The bias of the block and of the model, together, between the tokens of now."""
        whole = _bias(block.attn, side)
        if whole is None:
            return side
        trace = getattr(block, SITE).trace
        return {"relative": coarse_bias(whole, state, trace.num_prefix)}

    def tokens_to_check(self, block: nn.Module) -> int:
        """As many as the block's bias is made for."""
        index: Any = block.attn.relative_position_index  # type: ignore[union-attr]
        return super().tokens_to_check(block) if index is None else index.size(0)

    def watched(self, block: nn.Module) -> dict[str, nn.Module]:
        """``norm1``: what attention takes in. Its projection may be called as a function, which no hook sees."""
        return {"normed": block.norm1}  # type: ignore[dict-item]

    def statistics(
        self, block: nn.Module, seen: dict[str, Tensor], num_prefix: int, bias: Tensor | None, side: dict[str, Any]
    ) -> AttentionStats:
        """From queries and keys as our attention left them; after the stock one they are made again from its input."""
        attn: Any = block.attn

        def project() -> tuple[Tensor, Tensor]:
            q, k, _ = seen["qkv"] if "qkv" in seen else _projected(attn, seen["normed"])
            return q, k

        def keys() -> Tensor:
            if "qkv" in seen:
                k = seen["qkv"][1]
            else:
                weight = attn.qkv.weight.chunk(3)[1]  # keys have a bias of zeros
                k = F.linear(seen["normed"], weight).unflatten(2, (attn.num_heads, -1)).transpose(1, 2)
            return k[:, :, num_prefix:].mean(dim=1, dtype=torch.promote_types(k.dtype, torch.float32))

        plain = AttentionStats(project, float(attn.scale), num_prefix, bias, keys=keys)
        return RelativeStats(plain, lambda: _bias(attn, side))


def _bias(attn: Any, side: dict[str, Any]) -> Tensor | None:
    """The bias that attention adds: that of coarse tokens, or the block's own and the model's."""
    if side.get("relative") is not None:
        return side["relative"]
    shared = side.get("shared_rel_pos_bias")
    if attn.relative_position_bias_table is None:
        return shared
    index = attn.relative_position_index  # heads first from the start, which spares the copy that timm makes
    own = attn.relative_position_bias_table.t().contiguous().index_select(1, index.flatten()).view(1, -1, *index.shape)
    return own if shared is None else own + shared


def _projected(attn: Any, x: Tensor) -> Tensor:
    """Queries, keys and values, ``[3, B, H, N, D]``."""
    offset = None if attn.q_bias is None else torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
    rows = attn.qkv(x) if offset is None else F.linear(x, attn.qkv.weight, offset)
    return rows.unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)


def _attention(block: Any, x: Tensor, mask: Any) -> Tensor:
    """What the stock attention would be with ``mask``, which holds the bias, in place of its own bias."""
    attn = block.attn
    qkv = _projected(attn, x)
    seen = block.__dict__.get(STASH)
    if seen is not None:
        seen["qkv"] = qkv
    dropout = attn.attn_drop.p if attn.training else 0.0
    y = F.scaled_dot_product_attention(*qkv.unbind(0), attn_mask=mask, dropout_p=dropout, scale=attn.scale)
    return attn.proj_drop(attn.proj(y.transpose(1, 2).flatten(2)))
