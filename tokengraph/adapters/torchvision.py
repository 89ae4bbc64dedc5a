"""Adapter for torchvision's vision transformers: vit_b_16 and its variants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from tokengraph.adapters.base import is_a, strided_grid
from tokengraph.adapters.coarse import SITE, CoarseBlock, CoarseSite, ours
from tokengraph.adapters.parts.multihead import MultiheadAdapter

ORIGIN = "torchvision.models.vision_transformer"


class TorchvisionBlock(CoarseBlock):
    """``torchvision.models.vision_transformer.EncoderBlock`` that can coarsen its tokens."""

    def forward(self, input: Tensor) -> Tensor:
        """Takes ``[B, P+n, C]``."""
        return self.coarse(input)


class TorchvisionViT(MultiheadAdapter):
    """torchvision's ``VisionTransformer``, whose blocks hold an ``nn.MultiheadAttention``."""

    family = "torchvision VisionTransformer (vit_b_16, ...)"
    block_mixin = TorchvisionBlock
    norm, attention, after = "ln_1", "self_attention", "dropout"

    def serves(self, model: Any) -> bool:
        """Returns whether torchvision's ``VisionTransformer`` is among its classes."""
        return is_a(model, ORIGIN, "VisionTransformer")

    def blocks(self, model: Any) -> list[nn.Module]:
        """``model.encoder.layers``."""
        return self.check(list(model.encoder.layers))

    def num_prefix(self, model: Any) -> int:
        """1: the class token."""
        return 1

    def has_class_token(self, model: Any) -> bool:
        """Returns True: every such model has one."""
        return True

    def channels(self, model: Any) -> int:
        """``model.hidden_dim``."""
        return int(model.hidden_dim)

    def grid(self, model: Any) -> tuple[int, int]:
        """A square of ``image_size // patch_size``."""
        side = int(model.image_size) // int(model.patch_size)
        return side, side

    def feed(self, block: Any, x: Tensor) -> Tensor:
        """``x + mlp(ln_2(x))``."""
        return x + block.mlp(block.ln_2(x))

    def embedding(self, model: Any) -> nn.Module:
        """``model.conv_proj``."""
        return model.conv_proj

    def image_grid(self, embedding: Any, images: Tensor) -> tuple[int, ...]:
        """The grid that the patch convolution makes."""
        return strided_grid(embedding, images)

    def outputs(self, model: Any, core: nn.Module) -> list[tuple[nn.Module, str, Callable[..., Any]]]:
        """A hook with which ``model.encoder`` returns every patch, ``[B, P+N, C]``, for ``lift=True``."""
        return [(core.encoder, "output", lift_tokens)]  # type: ignore[list-item]


@ours
def lift_tokens(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """Forward hook of the encoder: lifts its tokens if the user asked for every patch."""
    site: CoarseSite = module.__dict__[SITE]
    return site.trace.lift_sequence(output) if site.lift else output
