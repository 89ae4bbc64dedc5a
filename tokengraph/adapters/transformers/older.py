"""Layers of transformers before their attention took a mask: 5.0 to 5.8, of DINOv2 up to 5.17."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from tokengraph.adapters.heads import attention_under, split_heads
from tokengraph.adapters.transformers.anatomy import is_beit, is_older, is_vision_model
from tokengraph.adapters.transformers.vit import FIRST_NORM, SECOND_NORM, TransformersViT, first_part, through
from tokengraph.nn.masked_attention import KeepMask
from tokengraph.select.attention import AttentionStats


class OlderTransformersViT(TransformersViT):
    """Layers whose attention holds ``attention.query`` and ``output.dense``, and takes no mask.

    While there is nothing to add to the logits, the stock attention runs. Where there is, its own projections go
    through ``scaled_dot_product_attention``, whatever ``attn_implementation`` says; maps are then not returned.
    """

    family = "transformers vision models of older layers (ViT, DeiT, DINOv2, MAE)"
    parts: ClassVar[tuple[tuple[str, ...], ...]] = (FIRST_NORM, ("attention",), SECOND_NORM, ("mlp", "intermediate"))

    def serves(self, model: nn.Module) -> bool:
        """Whether it is a vision model with layers of the older kind."""
        return is_vision_model(model) and is_older(model) and not is_beit(model)

    def attend(self, block: nn.Module, x: Tensor, mask: Tensor | KeepMask | None, **side: Any) -> Tensor:
        """Norm, attention, layer scale and drop path, as far as the layer has them, and the residual."""
        attention: Any = block.attention
        normed = first_part(block, FIRST_NORM)(x)
        dropout = attention.attention.dropout_prob
        y = attention(normed) if mask is None else attention_under(attention, normed, mask, dropout)
        return through(block, ("layer_scale1", "drop_path"), y) + x

    def feed(self, block: nn.Module, x: Tensor) -> Tensor:
        """The same with the MLP; ``output`` adds the residual by itself."""
        block_: Any = block
        y = first_part(block, SECOND_NORM)(x)
        if hasattr(block, "intermediate"):
            return block_.output(block_.intermediate(y), x)
        return through(block, ("layer_scale2", "drop_path"), block_.mlp(y)) + x

    def watched(self, block: nn.Module) -> dict[str, nn.Module]:
        """The projections of queries and keys."""
        block_: Any = block
        return {"q": block_.attention.attention.query, "k": block_.attention.attention.key}

    def statistics(
        self, block: nn.Module, seen: dict[str, Tensor], num_prefix: int, bias: Tensor | None, side: dict[str, Any]
    ) -> AttentionStats:
        """From the outputs of both projections."""
        block_: Any = block
        inner = block_.attention.attention
        width = inner.attention_head_size

        def project() -> tuple[Tensor, Tensor]:
            return split_heads(seen["q"], width=width), split_heads(seen["k"], width=width)

        def keys() -> Tensor:
            return split_heads(seen["k"], width=width)[:, :, num_prefix:].mean(dim=1)

        return AttentionStats(project, float(inner.scaling), num_prefix, bias, keys=keys)
