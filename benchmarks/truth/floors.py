"""Writes the tests' lower bounds: fidelity of the small ViT on 64 images at fixed settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import tokengraph as tg
from truth.chosen import PUBLISHED
from truth.fashion import WEIGHTS, fashion, fashion_vit, weights
from truth.plans import at_cost
from truth.tables import Body, ragged, shapes, strategies
from truth.thresholds import own_settings

TESTS = Path(__file__).resolve().parents[2] / "tests" / "truth"
PICTURES, STORED = "fashion_64.npz", "fidelity.json"
COUNT, SHARE = 64, 0.5
MEASURES = ("agreement", "class_cosine", "patch_cosine")


def settings(body: Body, share: float = SHARE) -> list[str]:
    """Every strategy that needs no training, by its defaults: its published schedule, or the first that there is.

    Strategies with thresholds of their own have the published ones. Those that cannot reach the share are left out:
    around the attention alone the MLP still costs as much as ever.
    """
    found = []
    for strategy in strategies():
        if ragged(strategy):
            found.append(own_settings(strategy, body.anatomy.depth)[0])
            continue
        known = sorted(shapes(strategy, body.anatomy.depth), key=lambda shape: shape.name != PUBLISHED.get(strategy))
        made = (at_cost(strategy, shape, share, body.anatomy, body.side**2, body.whole) for shape in known)
        found += [text for text in made if text is not None][:1]
    return found


def inputs(pixels: np.ndarray, file: Path = WEIGHTS) -> Tensor:
    """Images ``[N, 28, 28]`` uint8 as the small ViT takes them, ``[N, 3, 28, 28]``."""
    saved = weights(file)
    images = (torch.from_numpy(pixels).float() / 255 - saved["mean"]) / saved["std"]
    return images[:, None].repeat(1, 3, 1, 1)


def measured(images: Tensor, setting: str, file: Path = WEIGHTS) -> dict[str, float]:
    """Fidelity of the small ViT under a setting."""
    found = tg.fidelity(fashion_vit(file), images, setting)
    return {name: round(float(getattr(found, name)), 4) for name in MEASURES}


def write_floors(folder: Path, body: Body, tests: Path = TESTS, file: Path = WEIGHTS) -> Mapping[str, dict[str, float]]:
    """Writes the first 64 test images (MIT) and the fidelity of every strategy on them.

    Args:
        folder: Where packages were fetched.
        body: Of the small ViT.
        tests: Where both files go.
        file: The small ViT's weights.
    """
    data = fashion(folder)
    pixels = np.stack([data.image(i) for i in range(COUNT)])
    np.savez_compressed(tests / PICTURES, pixels=pixels)
    images = inputs(pixels, file)
    found = {setting: measured(images, setting, file) for setting in settings(body)}
    (tests / STORED).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found
