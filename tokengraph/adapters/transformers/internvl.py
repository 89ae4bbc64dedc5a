"""InternVL's vision tower in transformers: layers whose scales are the parameters ``lambda_1`` and ``lambda_2``."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tokengraph.adapters.parts.heads import split_heads
from tokengraph.adapters.transformers.anatomy import has_scales, is_beit, is_older, is_vision_model, layers_of
from tokengraph.adapters.transformers.supported import check_attention
from tokengraph.adapters.transformers.vit import TransformersViT
from tokengraph.attention.keep_mask import KeepMask
from tokengraph.attention.stats import AttentionStats


class TransformersInternVL(TransformersViT):
    """``InternVLVisionModel``, alone or in InternVL 2.5, 3 and 3.5. Its projector folds the grid: attach with lift."""

    family = "transformers InternVLVisionModel"

    def serves(self, model: Any) -> bool:
        """Returns whether layers have scales of their own and an attention that takes a mask."""
        ours = is_vision_model(model) and has_scales(model) and not (is_older(model) or is_beit(model))
        layers: Any = layers_of(model)
        return ours and hasattr(layers[0].attention, "q_proj")

    def attend(self, block: Any, x: Tensor, mask: Tensor | KeepMask | None, **side: Any) -> Tensor:
        """``x + lambda_1 * attention(layernorm_before(x))``."""
        if mask is not None:  # the implementation may have changed since attach
            check_attention(block.attention)
        y, _ = block.attention(block.layernorm_before(x), attention_mask=mask)
        return block.lambda_1 * y + x

    def feed(self, block: Any, x: Tensor) -> Tensor:
        """``x + lambda_2 * dropout(mlp(layernorm_after(x)))``."""
        y = block.dropout(block.mlp(block.layernorm_after(x)))
        return block.lambda_2 * y + x

    def kept(self, block: Any) -> dict[str, nn.Module]:
        """The normed queries and keys, and the values."""
        attention = block.attention
        return {"q": attention.q_norm, "k": attention.k_norm, "v": attention.v_proj}

    def statistics(
        self, block: Any, kept: dict[str, Tensor], num_prefix: int, bias: Tensor | None, side: dict[str, Any]
    ) -> AttentionStats:
        """From the queries and keys as attention uses them."""
        width = int(block.attention.head_dim)

        def heads(name: str) -> Tensor:
            return split_heads(kept[name], width=width)

        def project() -> tuple[Tensor, Tensor]:
            return heads("q"), heads("k")

        return AttentionStats(
            project,
            float(block.attention.scale),
            num_prefix,
            bias,
            keys=lambda: heads("k"),
            values=lambda: heads("v"),
        )
