"""torchvision's vision transformers: vit_b_16 and its kin."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tokengraph.adapters.base import Adapter, is_a
from tokengraph.adapters.block import CoarseBlock
from tokengraph.nn.masked_attention import KeepMask
from tokengraph.select.attention import AttentionStats

ORIGIN = "torchvision.models.vision_transformer"


class TorchvisionBlock(CoarseBlock):
    """``torchvision.models.vision_transformer.EncoderBlock`` with a coarsening in it."""

    def forward(self, input: Tensor) -> Tensor:
        """Takes ``[B, P+n, C]``."""
        return self.coarse(input)


class TorchvisionViT(Adapter):
    """torchvision's ``VisionTransformer``, whose blocks hold an ``nn.MultiheadAttention``.

    Queries and keys are made inside that module, by parameters; they are made again from its input where a strategy
    asks for them, one row for the class token, mean keys in one narrow product.
    """

    family = "torchvision VisionTransformer (vit_b_16, ...)"
    block_mixin = TorchvisionBlock
    masks_keep = False

    def serves(self, model: nn.Module) -> bool:
        """Whether torchvision's ``VisionTransformer`` is among its classes."""
        return is_a(model, ORIGIN, "VisionTransformer")

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        """``model.encoder.layers``."""
        return list(model.encoder.layers)  # type: ignore[union-attr,arg-type]

    def num_prefix(self, model: nn.Module) -> int:
        """1: the class token."""
        return 1

    def has_class_token(self, model: nn.Module) -> bool:
        """Always."""
        return True

    def channels(self, model: nn.Module) -> int:
        """``model.hidden_dim``."""
        return int(model.hidden_dim)  # type: ignore[arg-type]

    def grid(self, model: nn.Module) -> tuple[int, int]:
        """A square of ``image_size // patch_size``."""
        side = int(model.image_size) // int(model.patch_size)  # type: ignore[arg-type]
        return side, side

    def attend(self, block: nn.Module, x: Tensor, mask: Tensor | KeepMask | None, **side: Any) -> Tensor:
        """``x + dropout(self_attention(ln_1(x)))``; a mask of one row goes in as a float key padding mask."""
        block_: Any = block
        y = block_.ln_1(x)
        if mask is None:
            y, _ = block_.self_attention(y, y, y, need_weights=False)
        else:
            assert isinstance(mask, Tensor) and mask.size(-2) == 1  # no block here takes masks of users
            y, _ = block_.self_attention(y, y, y, need_weights=False, key_padding_mask=mask[:, 0, 0])
        return block_.dropout(y) + x

    def feed(self, block: nn.Module, x: Tensor) -> Tensor:
        """``x + mlp(ln_2(x))``."""
        return x + block.mlp(block.ln_2(x))  # type: ignore[operator]

    def watched(self, block: nn.Module) -> dict[str, nn.Module]:
        """``ln_1``: what attention takes in."""
        return {"normed": block.ln_1}  # type: ignore[dict-item]

    def statistics(
        self, block: nn.Module, seen: dict[str, Tensor], num_prefix: int, bias: Tensor | None, side: dict[str, Any]
    ) -> AttentionStats:
        """Queries and keys made again from the input of the attention."""
        attention: Any = block.self_attention
        heads, width, normed = attention.num_heads, attention.head_dim, seen["normed"]
        weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)

        def project() -> tuple[Tensor, Tensor]:
            pairs = zip(weights[:2], biases[:2], strict=True)
            q, k = (F.linear(normed, w, b).unflatten(2, (heads, width)).transpose(1, 2) for w, b in pairs)
            return q, k

        def keys() -> Tensor:  # the mean over heads of a product is the product with the mean of the weights
            weight, offset = weights[1].unflatten(0, (heads, width)), biases[1].unflatten(0, (heads, width))
            return F.linear(normed[:, num_prefix:], weight.mean(0), offset.mean(0))

        return AttentionStats(project, width**-0.5, num_prefix, bias, keys=keys)

    def embedding(self, model: nn.Module) -> nn.Module:
        """``model.conv_proj``."""
        return model.conv_proj  # type: ignore[return-value]

    def image_grid(self, embedding: nn.Module, images: Tensor) -> tuple[int, int]:
        """As the patch convolution counts."""
        height, width = embedding.stride  # type: ignore[misc]
        return images.size(-2) // int(height), images.size(-1) // int(width)  # type: ignore[arg-type]
