"""Adapter for transformers layers whose attention takes no mask: versions 5.0 to 5.8, DINOv2 up to 5.17."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokengraph.adapters.parts.heads import split_heads
from tokengraph.adapters.parts.hooks import check_called_alone
from tokengraph.adapters.transformers.anatomy import is_beit, is_older, is_vision_model
from tokengraph.adapters.transformers.vit import FIRST_NORM, SECOND_NORM, TransformersViT, apply_parts, first_part
from tokengraph.attention.keep_mask import KeepMask
from tokengraph.attention.stats import AttentionStats


class OlderTransformersViT(TransformersViT):
    """Layers whose attention holds ``attention.query`` and ``output.dense``, and takes no mask.

    The stock attention runs as long as nothing is added to the logits. Otherwise its own projections go through
    ``scaled_dot_product_attention``, regardless of ``attn_implementation``; attention maps are then not returned.
    """

    family = "transformers vision models of older layers (ViT, DeiT, DINOv2, MAE)"
    parts: ClassVar[tuple[tuple[str, ...], ...]] = (FIRST_NORM, ("attention",), SECOND_NORM, ("mlp", "intermediate"))

    def serves(self, model: Any) -> bool:
        """Returns whether the model is a vision model with layers of the older kind."""
        return is_vision_model(model) and is_older(model) and not is_beit(model)

    def attend(self, block: Any, x: Tensor, mask: Tensor | KeepMask | None, **side: Any) -> Tensor:
        """Norm, attention, layer scale and drop path, if the layer has them, and the residual."""
        attention = block.attention
        normed = first_part(block, FIRST_NORM)(x)
        dropout = attention.attention.dropout_prob
        y = attention(normed) if mask is None else attention_under(attention, normed, mask, dropout)
        return apply_parts(block, ("layer_scale1", "drop_path"), y) + x

    def feed(self, block: Any, x: Tensor) -> Tensor:
        """The same for the MLP; ``output`` adds the residual by itself."""
        y = first_part(block, SECOND_NORM)(x)
        if hasattr(block, "intermediate"):
            return block.output(block.intermediate(y), x)
        return apply_parts(block, ("layer_scale2", "drop_path"), block.mlp(y)) + x

    def kept(self, block: Any) -> dict[str, nn.Module]:
        """The projections."""
        inner = block.attention.attention
        return {"q": inner.query, "k": inner.key, "v": inner.value}

    def statistics(
        self, block: Any, kept: dict[str, Tensor], num_prefix: int, bias: Tensor | None, side: dict[str, Any]
    ) -> AttentionStats:
        """From the outputs of the projections."""
        inner = block.attention.attention
        width = inner.attention_head_size

        def project() -> tuple[Tensor, Tensor]:
            return split_heads(kept["q"], width=width), split_heads(kept["k"], width=width)

        def keys() -> Tensor:
            return split_heads(kept["k"], width=width)

        def values() -> Tensor:
            return split_heads(kept["v"], width=width)

        scale = float(getattr(inner, "scaling", width**-0.5))
        return AttentionStats(project, scale, num_prefix, bias, keys=keys, values=values)


def attention_under(
    attention: Any, normed: Tensor, mask: Any, dropout: float, maps: list[Tensor | None] | None = None
) -> Tensor:
    """Computes the attention of a module that takes no mask, with ``mask`` added to its logits.

    Args:
        attention: Holds ``attention.query``, ``key`` and ``value``, and ``output``.
        normed: ``[B, N, C]``.
        mask: As ``scaled_dot_product_attention`` takes it.
        dropout: Of the weights, while training.
        maps: A list; the map ``[B, H, N, N]``, after dropout as in the stock attention, is appended to it, or ``None``
            if the attention is fused. ``None``: no map is computed.

    Returns:
        ``[B, N, C]``.

    Raises:
        ValueError: If the attention has hooks or a forward of its own.
    """
    inner, width = attention.attention, attention.attention.attention_head_size
    for module in (attention, inner):
        check_called_alone(module, "it takes no mask")
    q, k, v = (split_heads(project(normed), width=width) for project in (inner.query, inner.key, inner.value))
    dropout = dropout if inner.training else 0.0
    fused = "Sdpa" in type(inner).__name__
    if maps is None or fused:
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=width**-0.5)
        weights = None
    else:
        weights = F.softmax(torch.matmul(q * width**-0.5, k.transpose(-2, -1)) + mask, dim=-1)
        weights = F.dropout(weights, dropout).to(v.dtype)
        y = torch.matmul(weights, v)
    if maps is not None:
        maps.append(weights)
    return attention.output(y.transpose(1, 2).flatten(2), normed)
