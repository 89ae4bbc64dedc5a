"""Photographs in the wheels of scikit-image and scikit-learn: crops of four, and grounds of composed scenes."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image

from tokengraph.evaluate.images import Arrays

CROPPED = ("astronaut", "chelsea", "coffee", "china")
GROUNDS = ("rocket", "camera", "brick", "grass", "gravel", "hubble_deep_field", "coins", "page", "text", "flower")


@cache
def photographs() -> dict[str, Image.Image]:
    """Returns the photographs that need no download, by name.

    Raises:
        ImportError: Without scikit-image and scikit-learn.
    """
    from skimage import data
    from sklearn.datasets import load_sample_images

    found = {}
    for name in sorted({*CROPPED, *GROUNDS} - {"china", "flower"}):
        try:
            found[name] = Image.fromarray(getattr(data, name)()).convert("RGB")
        except Exception:  # not in this version's wheel: it would be downloaded
            continue
    sample = load_sample_images()
    for name, pixels in zip(sample.filenames, sample.images, strict=True):
        found[name.rsplit("/")[-1].removesuffix(".jpg")] = Image.fromarray(pixels)
    return found


def boxes(width: int, height: int) -> list[tuple[int, int, int, int]]:
    """Four square crops of a photograph: the largest in the middle, and three of two thirds of it, across."""
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    small = 2 * side // 3
    corners = [(0, 0), ((width - small) // 2, (height - small) // 2), (width - small, height - small)]
    return [(left, top, left + side, top + side)] + [(x, y, x + small, y + small) for x, y in corners]


def crops(side: int = 224) -> Arrays:
    """16 crops of four photographs, resized to ``side``."""
    pictures, names = [], []
    for name in CROPPED:
        photo = photographs()[name]
        for number, box in enumerate(boxes(*photo.size)):
            pictures.append(np.asarray(photo.crop(box).resize((side, side), Image.Resampling.BICUBIC)))
            names.append(f"{name}-{number}")
    return Arrays(np.stack(pictures), name="photographs", names=names)
