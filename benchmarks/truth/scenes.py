"""Composed scenes with exact masks: drawings with a transparent background, pasted on crops of real photographs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tokengraph.evaluate.images import Images
from truth.photographs import photographs
from truth.pictures import open_png

SIDE, SMALLEST, LARGEST = 224, 64, 4000
POOLS = (  # folders of cut-outs
    ("unpacked/usr/share/openclipart/png/animals", "unpacked/usr/share/tuxpaint/stamps/animals"),
    ("unpacked/usr/share/openclipart/png/food", "unpacked/usr/share/tuxpaint/stamps/food"),
    ("unpacked/usr/share/openclipart/png/transportation", "unpacked/usr/share/tuxpaint/stamps/vehicles"),
    ("unpacked/usr/share/openclipart/png/tools", "unpacked/usr/share/tuxpaint/stamps/household"),
)
CUTOUTS = 60  # of each pool


def usable(image: Image.Image) -> bool:
    """Returns whether a tenth to nine tenths of a picture with alpha are transparent."""
    clear = float((np.asarray(image)[..., 3] < 128).mean())
    return 0.1 < clear < 0.9


@cache
def cutouts(folder: Path, count: int = CUTOUTS) -> tuple[tuple[Image.Image, ...], ...]:
    """Draws ``count`` cut-outs (RGBA, at most 224 pixels) of each pool from its files with a fixed seed.

    Raises:
        FileNotFoundError: If a pool has none, because the packages are missing.
    """
    pools = []
    for number, folders in enumerate(POOLS):
        paths = sorted(path for name in folders for path in (folder / name).rglob("*.png"))
        random.Random(number).shuffle(paths)
        found: list[Image.Image] = []
        for path in paths:
            cut = open_png(path, SMALLEST, LARGEST)
            if cut is None:
                continue
            cut.thumbnail((SIDE, SIDE))
            if usable(cut):
                found.append(cut)
            if len(found) == count:
                break
        if not found:
            raise FileNotFoundError(f"Expected cut-outs in {', '.join(folders)} (got none). Fetch the packages first.")
        pools.append(tuple(found))
    return tuple(pools)


def compose(
    rng: random.Random,
    grounds: Sequence[Image.Image],
    pools: Sequence[Sequence[Image.Image]],
    side: int = SIDE,
    *,
    most: int = 3,
    scale: tuple[float, float] = (0.3, 0.65),
) -> tuple[np.ndarray, np.ndarray]:
    """Composes one scene: a crop of a photograph with one to ``most`` cut-outs on it.

    Args:
        rng: Draws everything.
        grounds: Photographs, RGB.
        pools: Cut-outs, RGBA, by kind.
        side: Of the scene, in pixels.
        most: Cut-outs at most.
        scale: Smallest and largest longer side of a cut-out, as a share of the scene's.

    Returns:
        Image ``[side, side, 3]`` uint8 and labels ``[side, side]`` uint8: 0 ground, 1 + the kind of what lies on top.
    """
    ground = rng.choice(grounds)
    cut = rng.randint(min(ground.size) // 2, min(ground.size))
    x, y = rng.randint(0, ground.width - cut), rng.randint(0, ground.height - cut)
    scene = ground.crop((x, y, x + cut, y + cut)).resize((side, side), Image.Resampling.BICUBIC)
    labels = np.zeros((side, side), np.uint8)
    for _ in range(rng.randint(1, most)):
        kind = rng.randrange(len(pools))
        thing = rng.choice(pools[kind])
        factor = rng.uniform(*scale) * side / max(thing.size)
        thing = thing.resize([min(side, max(8, int(n * factor))) for n in thing.size], Image.Resampling.BICUBIC)
        if rng.random() < 0.5:
            thing = thing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        px, py = rng.randint(0, side - thing.width), rng.randint(0, side - thing.height)
        scene.paste(thing, (px, py), thing)
        there = np.asarray(thing)[..., 3] > 127
        labels[py : py + thing.height, px : px + thing.width][there] = kind + 1
    return np.asarray(scene), labels


class Scenes(Images):
    """Scenes by number; scene ``i`` is the same in every run and for every ``count``.

    Masks are 1 on cut-outs and 0 on the background, for saliency.

    Args:
        folder: Where packages were fetched.
        count: How many.
        seed: Of all of them.
        side: In pixels.
    """

    def __init__(self, folder: Path, count: int, *, seed: int = 0, side: int = SIDE) -> None:
        self.folder, self.count, self.seed, self.side = folder, count, seed, side
        self.name, self.classes, self.scored, self.has_masks = "composed scenes", ("ground", "thing"), (1,), True

    def __len__(self) -> int:
        return self.count

    def _scene(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        grounds = [image for _, image in sorted(photographs().items())]
        rng = random.Random(f"{self.seed}-{index}")
        return compose(rng, grounds, cutouts(self.folder), self.side)

    def image(self, index: int) -> Any:
        """``[side, side, 3]`` uint8."""
        return self._scene(index)[0]

    def mask(self, index: int) -> Any:
        """``[side, side]``: 1 where a thing lies."""
        return (self._scene(index)[1] > 0).astype(np.uint8)

    def key(self, index: int) -> str:
        """Seed, number and side: the same words stand for the same scene."""
        return f"{self.seed}-{index}, {self.side} px"
