"""torchvision's vision transformers: vit_b_16 and its kin."""

from __future__ import annotations

from torch import Tensor, nn

from tokengraph.adapters.base import is_a, strided_grid
from tokengraph.adapters.block import CoarseBlock
from tokengraph.adapters.multihead.base import MultiheadAdapter

ORIGIN = "torchvision.models.vision_transformer"


class TorchvisionBlock(CoarseBlock):
    """``torchvision.models.vision_transformer.EncoderBlock`` with a coarsening in it."""

    def forward(self, input: Tensor) -> Tensor:
        """Takes ``[B, P+n, C]``."""
        return self.coarse(input)


class TorchvisionViT(MultiheadAdapter):
    """torchvision's ``VisionTransformer``, whose blocks hold an ``nn.MultiheadAttention``."""

    family = "torchvision VisionTransformer (vit_b_16, ...)"
    block_mixin = TorchvisionBlock
    norm, attention, after = "ln_1", "self_attention", "dropout"

    def serves(self, model: nn.Module) -> bool:
        """Whether torchvision's ``VisionTransformer`` is among its classes."""
        return is_a(model, ORIGIN, "VisionTransformer")

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        """``model.encoder.layers``."""
        return self.check(list(model.encoder.layers))  # type: ignore[union-attr,arg-type]

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

    def feed(self, block: nn.Module, x: Tensor) -> Tensor:
        """``x + mlp(ln_2(x))``."""
        return x + block.mlp(block.ln_2(x))  # type: ignore[operator]

    def embedding(self, model: nn.Module) -> nn.Module:
        """``model.conv_proj``."""
        return model.conv_proj  # type: ignore[return-value]

    def image_grid(self, embedding: nn.Module, images: Tensor) -> tuple[int, int]:
        """As the patch convolution counts."""
        return strided_grid(embedding, images)
