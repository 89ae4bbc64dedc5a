"""13 photographs of a Debian package of wallpapers, to make plans on: none of them is in a set that is measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tokengraph.evaluate.images import Arrays
from truth.photographs import boxes

ROOT = Path("unpacked/usr/share/backgrounds")
PATTERNS = ("analogpattern", "umang")  # no photographs
SIDE = 224


def wallpapers(folder: Path, count: int) -> Arrays:
    """Returns crops ``[count, 224, 224, 3]``: the largest square of each photograph, then two thirds of it.

    Raises:
        OSError: If the package is not there.
    """
    files = [f for f in sorted((folder / ROOT).glob("*.jpg")) if not f.name.startswith(PATTERNS)]
    if not files:
        raise OSError(f"Expected photographs in {folder / ROOT} (got none). Run fetch first.")
    pictures = []
    for number in range(min(count, 4 * len(files))):
        with Image.open(files[number % len(files)]) as photo:
            whole, *small = boxes(*photo.size)
            box = [whole, small[1], small[0], small[2]][number // len(files)]
            shown = photo.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box)
        pictures.append(np.asarray(shown))
    return Arrays(np.stack(pictures), name="photographs to plan on")
