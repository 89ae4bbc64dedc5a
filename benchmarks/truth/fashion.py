"""Fashion-MNIST, and the small ViT that ``examples/train_fashion_vit.py`` trains on it."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tokengraph.compat import timm
from tokengraph.evaluate.images import Arrays

DATA = Path("unpacked/usr/share/datasets/fashion-mnist")
WEIGHTS = Path(__file__).parent / "fashion_vit.pt"
CLASSES = ("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


def fashion(folder: Path, part: str = "t10k") -> Arrays:
    """Returns the 10,000 test images, or with ``"train"`` the 60,000 training images.

    Raises:
        OSError: If the package is missing.
    """

    def read(kind: str, offset: int) -> np.ndarray:
        with gzip.open(folder / DATA / f"{part}-{kind}-ubyte.gz") as file:
            return np.frombuffer(file.read(), np.uint8, offset=offset)

    pictures = read("images-idx3", 16).reshape(-1, 28, 28)
    return Arrays(pictures, read("labels-idx1", 8), name="Fashion-MNIST", classes=CLASSES)


def weights(file: Path = WEIGHTS) -> dict[str, Any]:
    """Loads the training script's file: ``shape``, ``mean``, ``std``, ``accuracy``, ``weights`` in float16.

    Raises:
        OSError: If the file is missing.
    """
    if not file.exists():
        raise FileNotFoundError(f"Expected the small ViT in {file} (got none). examples/train_fashion_vit.py makes it.")
    return torch.load(file, weights_only=True)


def fashion_vit(file: Path = WEIGHTS, size: int | None = None) -> nn.Module:
    """Returns the trained model for images of three equal channels and ``size`` pixels (28), in eval mode.

    It was trained on one channel; a third of the patch embedding for each of three channels gives the same tokens.

    Raises:
        OSError: If the file is not there.
        ValueError: If ``size`` is no multiple of the patch size.
    """
    saved = weights(file)
    state: dict[str, Tensor] = {name: value.float() for name, value in saved["weights"].items()}
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].repeat(1, 3, 1, 1) / 3
    model = timm.models.VisionTransformer(**{**saved["shape"], "in_chans": 3})
    model.load_state_dict(state, strict=True)
    patch = saved["shape"]["patch_size"]
    if size is not None and size % patch:
        raise ValueError(f"Expected a size that is a multiple of {patch} (got {size}).")
    if size is not None and size != saved["shape"]["img_size"]:
        model.set_input_size(img_size=size)
    return model.eval()
