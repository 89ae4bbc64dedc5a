"""Tokens of the images of both tasks by the ViT-S/14: float16 files of some images each, made once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from truth.clipart import clipart
from truth.elpv import Elpv
from truth.tasks import part, vit_s

from tokengraph.evaluate.images import Images, Subset
from tokengraph.evaluate.source import Source
from tokengraph.evaluate.transform import to_input

SIDE, CHUNK = 224, 50
TASKS = ("openclipart", "ELPV")


@dataclass(frozen=True, eq=False)
class Split:
    """The tokens of one task, training images first.

    Args:
        tokens: ``[n, 1 + 256, 384]`` float16, after the final norm; the class token comes first.
        labels: Class of each image, ``[n]``.
        train: Number of training images.
        classes: Number of classes.
    """

    tokens: Tensor
    labels: Tensor
    train: int
    classes: int


def images(task: str, folder: Path, train: int, test: int) -> list[Images]:
    """Training and test images, drawn with seed 0. ELPV has no split of its own: one draw is cut in two."""
    if task == "openclipart":
        first, second = clipart(folder)
        return [part(first, train), part(second, test)]
    order = np.random.default_rng(0).permutation(len(Elpv(folder)))
    whole = Elpv(folder)
    return [_subset(whole, order[:train]), _subset(whole, order[train : train + test])]


def _subset(whole: Images, indices: np.ndarray) -> Images:
    return Subset(whole, indices.tolist())


def make(task: str, folder: Path, out: Path, train: int, test: int) -> Split:
    """Runs the model on images without stored tokens, and returns all tokens.

    A stopped run loses at most 50 images.
    """
    parts = images(task, folder, train, test)
    model = None
    found, labels = [], []
    for name, chosen in zip(("train", "test"), parts, strict=True):
        for start in range(0, len(chosen), CHUNK):
            stop = min(start + CHUNK, len(chosen))
            file = out / f"{task}-{name}-{start:05d}-{stop:05d}.npy"
            if not file.exists():
                model = model or vit_s(SIDE)(folder)
                _write(file, model, chosen, range(start, stop))
            found.append(torch.from_numpy(np.load(file)))
        labels += [chosen.label(i) for i in range(len(chosen))]
    classes = len(parts[0].classes or ())
    return Split(torch.cat(found), torch.tensor(labels), len(parts[0]), classes)


def _write(file: Path, source: Source, chosen: Images, numbers: range) -> None:
    net, rows, config = _built(source), [], source.config
    assert config is not None
    with torch.no_grad():
        for index in numbers:
            rows.append(net(to_input(chosen.image(index), config)[None])[0].half().numpy())
    temporary = file.with_suffix(f".{os.getpid()}.part")
    file.parent.mkdir(parents=True, exist_ok=True)
    with temporary.open("wb") as stream:
        np.save(stream, np.stack(rows))
    temporary.replace(file)
    print(f"{file.name}", flush=True)


_MODELS: dict[str, Any] = {}


def _built(source: Source) -> Any:
    """The model as a function of images to tokens after the final norm."""
    if source.name not in _MODELS:
        _MODELS[source.name] = source.build(None).eval()
    return _MODELS[source.name].forward_features
