"""A Segmenter-like model, a ViT with a mask transformer, on images larger than its windows, with fewer tokens.

It trains for minutes on drawn scenes (see dense_scenes.py), then runs plain, with AiluRus, Expedite and MPM: they
cluster after a quarter of the blocks, and every patch is back before the mask transformer. Needs the extra timm.

    python examples/segmenter.py        (--quick: a few steps, to see it run)
"""

from typing import Any

import torch
import torch.nn.functional as F
from dense_compare import Meter, compare, effort, slide, ways
from dense_scenes import KINDS, draw_scenes, mean_iou, train
from torch import Tensor, nn

from tokengraph.compat import timm


class MaskTransformer(nn.Module):
    """Class tokens that attend to all patches with them; masks are the products of both, as in Segmenter."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 3, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.kinds = nn.Parameter(torch.randn(1, classes, width) * 0.02)
        self.norm = nn.LayerNorm(classes)

    def forward(self, tokens: Tensor) -> Tensor:
        kinds = self.kinds.expand(tokens.size(0), -1, -1)
        patches, kinds = self.layers(torch.cat([tokens, kinds], dim=1)).split([tokens.size(1), kinds.size(1)], dim=1)
        return self.norm(F.normalize(patches, dim=2) @ F.normalize(kinds, dim=2).transpose(1, 2))


class Segmenter(nn.Module):
    """A plain vision transformer and a mask transformer."""

    def __init__(self, side: int, patch: int, depth: int = 8, width: int = 96) -> None:
        super().__init__()
        sizes: dict[str, Any] = {"img_size": side, "patch_size": patch, "embed_dim": width, "depth": depth}
        rest: dict[str, Any] = {"num_heads": 3, "class_token": False, "global_pool": "", "num_classes": 0}
        self.backbone = timm.models.VisionTransformer(**sizes, **rest)
        self.head = MaskTransformer(width, len(KINDS))

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, K, H, W]`` of images in [0, 1]."""
        tokens = self.backbone(images * 2 - 1)
        side = round(tokens.size(1) ** 0.5)
        logits = self.head(tokens).transpose(1, 2).unflatten(2, (side, side))
        return F.interpolate(logits, images.shape[2:], mode="bilinear")


def main() -> None:
    steps, rounds, count = effort(__doc__, 12)
    torch.manual_seed(0)
    side, patch = 128, 8
    model = Segmenter(side, patch)
    train(model, lambda s: F.cross_entropy(model(s.images), s.labels), steps, (side, side), 1e-3)
    scenes = draw_scenes(count, (128, 224), torch.Generator().manual_seed(1), shapes=7)  # two windows each
    compare(
        model,
        Meter(model.backbone, model.backbone),
        ways(2, 8, (11, 11)),
        lambda: slide(model, scenes.images, side, 96).argmax(dim=1),
        lambda predicted: mean_iou(predicted, scenes.labels),
        rounds,
    )


if __name__ == "__main__":
    main()
