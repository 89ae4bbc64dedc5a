"""A ViTDet-style detector: a plain ViT, a simple feature pyramid and torchvision's FCOS head, with fewer tokens.

It trains for minutes on drawn scenes (see dense_scenes.py), then runs plain, with AiluRus, Expedite and MPM: they
cluster after a quarter of the blocks, and every patch is back before the pyramid. Needs timm and torchvision.

    python examples/detector.py        (--quick: a few steps, to see it run)
"""

from collections import OrderedDict
from typing import Any

import torch
from dense_compare import Meter, compare, effort, ways
from dense_scenes import KINDS, Scenes, draw_scenes, train
from torch import Tensor, nn

from tokengraph.compat import timm, torchvision

SIDE, PATCH, DEPTH, WIDTH = 160, 8, 8, 96


class PlainPyramid(nn.Module):
    """A ViT as a backbone of torchvision's detectors: its last map at half, whole and double stride."""

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        sizes: dict[str, Any] = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH}
        rest: dict[str, Any] = {"num_heads": 3, "class_token": False, "global_pool": "", "num_classes": 0}
        self.vit = timm.models.VisionTransformer(**sizes, **rest)
        self.out_channels = channels
        scale = (nn.ConvTranspose2d(WIDTH, WIDTH, 2, 2), nn.Identity(), nn.MaxPool2d(2))
        smooth = [nn.Conv2d(WIDTH, channels, 3, padding=1) for _ in scale]
        self.maps = nn.ModuleList([nn.Sequential(*pair) for pair in zip(scale, smooth, strict=True)])

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps of images ``[B, 3, SIDE, SIDE]``, finest first."""
        tokens = self.vit(images)
        patches = tokens.transpose(1, 2).unflatten(2, (SIDE // PATCH, SIDE // PATCH))
        return OrderedDict((str(i), make(patches)) for i, make in enumerate(self.maps))


def make_model() -> Any:
    """The detector; its class 0 is the ground, which it never predicts."""
    anchors = torchvision.models.detection.anchor_utils.AnchorGenerator(((8,), (16,), (32,)), ((1.0,),) * 3)
    stats = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    size = {"min_size": SIDE, "max_size": SIDE}
    return torchvision.models.detection.FCOS(PlainPyramid(), len(KINDS), anchor_generator=anchors, **stats, **size)


def loss(model: Any, scenes: Scenes) -> Tensor:
    """The sum of the detector's own losses."""
    return sum(model(list(scenes.images), scenes.boxes).values(), torch.zeros(()))


def average_precision(found: list[dict[str, Tensor]], truth: list[dict[str, Tensor]]) -> float:
    """AP at an IoU of 0.5, averaged over kinds: the area under precision, made to fall, over recall."""
    values = []
    for kind in range(1, len(KINDS)):
        hits, total = [], 0
        for mine, theirs in zip(found, truth, strict=True):
            wanted, chosen = theirs["boxes"][theirs["labels"] == kind], mine["labels"] == kind
            total, free = total + len(wanted), torch.ones(len(wanted))
            overlap = torchvision.ops.box_iou(mine["boxes"][chosen], wanted)
            for score, row in zip(mine["scores"][chosen].tolist(), overlap, strict=True):  # the surest come first
                best, at = (row * free).max(dim=0) if len(wanted) else (torch.zeros(()), torch.zeros(()))
                hit = bool(best >= 0.5)
                if hit:
                    free[at] = 0
                hits.append((score, hit))
        right = torch.tensor([hit for _, hit in sorted(hits, reverse=True)]).cumsum(dim=0)
        precision = right / torch.arange(1, len(hits) + 1)
        falling = precision.flip(0).cummax(dim=0).values.flip(0) if hits else precision
        steps = torch.diff(right, prepend=torch.zeros(1, dtype=right.dtype))
        values.append(float((falling * steps).sum() / max(total, 1)))
    return sum(values) / len(values)


def main() -> None:
    steps, rounds, count = effort(__doc__, 16)
    torch.manual_seed(0)
    model = make_model()
    train(model, lambda scenes: loss(model, scenes), steps, (SIDE, SIDE), 1e-3)
    scenes = draw_scenes(count, (SIDE, SIDE), torch.Generator().manual_seed(1))
    compare(
        model,
        Meter(model.backbone.vit, model.backbone.vit),
        ways(2, DEPTH, (14, 14)),
        lambda: model(list(scenes.images)),
        lambda found: average_precision(found, scenes.boxes),
        rounds,
    )


if __name__ == "__main__":
    main()
