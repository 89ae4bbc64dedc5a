"""Preprocesses images and masks as in the evaluation of a checkpoint."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokengraph.evaluate.config import DataConfig
from tokengraph.io.pixels import to_light
from tokengraph.optional import optional


def to_input(image: Any, config: DataConfig) -> Tensor:
    """Resizes, crops and normalises one image, as timm and torchvision do it for evaluation.

    Args:
        image: A Pillow image of any mode, or an array ``[H, W]`` or ``[H, W, 3]`` of uint8.
        config: The checkpoint's preprocessing.

    Returns:
        ``[3, S, S]`` float32. EXIF orientation is not applied, as in the published figures.

    Raises:
        ValueError: If the array has another shape or type, or the image has NaN.
    """
    light = to_light(_pillow(image))
    wide = light.mode == "F"  # grey values in [0, 1]
    fill = sum(config.mean) / 3 if wide else tuple(round(255 * v) for v in config.mean)
    pixels = np.asarray(_cut(light, config, config.interpolation, fill), dtype=np.float32)
    values = torch.from_numpy(np.repeat(pixels.clip(0, 1)[..., None], 3, axis=2) if wide else pixels / 255)
    mean, std = torch.tensor(config.mean), torch.tensor(config.std)
    return ((values - mean) / std).permute(2, 0, 1).contiguous()


def to_target(mask: Any, config: DataConfig) -> Tensor:
    """Cuts a mask as :func:`to_input` cuts its image: ``[S, S]`` int64; padding counts as 255, which is ignored."""
    array = np.asarray(mask)
    if array.ndim != 2:
        raise ValueError(
            f"Expected a mask of shape [H, W] (got {list(array.shape)}). Give class numbers instead of colours."
        )
    plain = optional("PIL.Image").fromarray(array.astype(np.int32))
    return torch.from_numpy(np.array(_cut(plain, config, "nearest", fill=255), dtype=np.int64))


def _pillow(image: Any) -> Any:
    if isinstance(image, Tensor):
        image = image.numpy()
    if not isinstance(image, np.ndarray):
        return image
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        raise ValueError(f"Expected an image as uint8 [H, W] or [H, W, 3] (got {image.dtype} {list(image.shape)}).")
    return optional("PIL.Image").fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image)


def _cut(image: Any, config: DataConfig, interpolation: str, fill: Any) -> Any:
    """Crops the square ``[S, S]`` of a Pillow image, with ``fill`` outside it."""
    size, method = config.size, getattr(optional("PIL.Image").Resampling, interpolation.upper())
    target = math.floor(size / config.crop_pct)
    width, height = image.size
    if config.crop_mode == "squash":
        sides = target, target
    elif config.crop_mode == "border":
        scale = target / max(width, height)
        sides = max(1, round(width * scale)), max(1, round(height * scale))
    elif width <= height:
        sides = target, int(target * height / width)
    else:
        sides = int(target * width / height), target
    image = image if sides == image.size else image.resize(sides, method)
    left, top = (round((side - size) / 2) if side >= size else -((size - side) // 2) for side in sides)
    if min(left, top) >= 0:
        return image.crop((left, top, left + size, top + size))
    canvas = optional("PIL.Image").new(image.mode, (size, size), fill)
    canvas.paste(image, (-left, -top))
    return canvas
