"""Tiny models with random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tokengraph.kinds import explains


@explains
def tiny_vit(*, seed: int = 0, **options: Any) -> nn.Module:
    """Makes a timm ``VisionTransformer`` of 3 blocks, 32 channels, 4 x 4 patches of 8 pixels, in eval mode.

    Args:
        seed: Seed of the random weights; the global generator does not change.
        **options: Options of timm's ``VisionTransformer``, which may also change the sizes.
    """
    from tokengraph.compat import timm

    sizes: dict[str, Any] = {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 32,
        "depth": 3,
        "num_heads": 4,
        "num_classes": 5,
    }
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = timm.models.vision_transformer.VisionTransformer(**{**sizes, **options})
        for parameter in model.parameters():  # timm's initial values nearly hide patches from the class token
            nn.init.normal_(parameter, std=0.3 if parameter.dim() <= 1 or not parameter.any() else 0.2)
    return model.eval()
