"""The tasks, each a model with images and measures. Each is built when it runs; its failure stops no other task."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from tokengraph.adapters import find_adapter
from tokengraph.evaluate.config import DataConfig
from tokengraph.evaluate.costs import anatomy
from tokengraph.evaluate.images import Images, Subset
from tokengraph.evaluate.source import Source
from truth import official
from truth.clipart import clipart
from truth.elpv import Elpv
from truth.fashion import fashion, fashion_vit
from truth.fashion import weights as fashion_weights
from truth.photographs import crops
from truth.saliency import saliency
from truth.scenes import Scenes
from truth.tables import Body

SCENES = 1000
Trial = tuple[Images, Images | None]  # to measure on, to fit the probe on


@dataclass(frozen=True)
class Task:
    """A model, its images and the measures on them.

    Args:
        name: Of the task, and of its file of results.
        source: Builds the model's source, of the folder of packages.
        data: Gives the images, of the same folder.
        probe: The kind of probe, where the model has no head for the task.
        decode: Builds what makes pixel logits of patch maps.
        folder: Predictions lie here: tasks that differ in labels only share it.
        says: What it is, in a sentence, for the tables.
        takes: The commands that measure on it.
        searched: The task whose search chooses the schedules: of the same model, other images.
        limit: Images of the search or the frontier; ``None``: all.
    """

    name: str
    source: Callable[[Path], Source]
    data: Callable[[Path], Trial]
    probe: str | None = None
    decode: Callable[[Path], nn.Module] | None = None
    folder: str = ""
    says: str = ""
    takes: tuple[str, ...] = ("headline", "frontier")
    searched: str = "photographs"
    limit: int | None = 800

    def images(self, folder: Path, limit: int | None) -> Trial:
        """All images, or ``limit`` of each part."""
        data, train = self.data(folder)
        return part(data, limit), None if train is None else part(train, limit)

    def body(self, folder: Path) -> Body:
        """Returns the model's body, on which schedules depend."""
        source = self.source(folder)
        model = source.build(None)
        core, adapter = find_adapter(model)
        counted, config = anatomy(model), source.config
        assert counted is not None and config is not None
        side = adapter.grid(core)[0]
        return Body(counted, side, config.size // side)


def part(images: Images, limit: int | None, seed: int = 0) -> Images:
    """``limit`` images drawn with a seed, in their order; all for ``None``."""
    if limit is None or limit >= len(images):
        return images
    drawn = np.random.default_rng(seed).permutation(len(images))[:limit]
    return Subset(images, sorted(drawn.tolist()))


def vit_s(size: int, crop: float = 1.0, choice: str = "") -> Callable[[Path], Source]:
    """The ViT-S/14 with its preprocessing: ImageNet's mean and deviation, for official weights and for the package's.

    Args:
        size: Of the images, in pixels.
        crop: The share of the resized image that the central crop keeps.
        choice: Which weights; empty: as ``$TRUTH_WEIGHTS`` says, by default official where the hub is reachable.
    """

    def source(folder: Path) -> Source:
        name, build = official.vit_s(folder, choice or os.environ.get("TRUTH_WEIGHTS") or "auto")
        return Source(name, lambda own: build(own or size), DataConfig(size, crop_pct=crop), weights=name)

    return source


def small_vit(folder: Path) -> Source:
    """The ViT that the training example made."""
    saved = fashion_weights()
    mean, std = (float(saved["mean"]),) * 3, (float(saved["std"]),) * 3
    config = DataConfig(28, mean, std, source="as it was trained")
    name = f"a small ViT trained on Fashion-MNIST (test accuracy {100 * saved['accuracy']:.2f})"
    return Source(name, lambda size: fashion_vit(size=size), config, weights="examples/train_fashion_vit.py")


def alone(make: Callable[[Path], Images]) -> Callable[[Path], Trial]:
    """Images without a training part."""
    return lambda folder: (make(folder), None)


def drawings(folder: Path) -> Trial:
    """Test and training drawings."""
    train, test = clipart(folder)
    return test, train


def cells(side: int, label: str, says: str, *, share: float = 1.0, **options: Any) -> Task:
    """A task on ELPV's solar cells with this label; ``share`` of each image is cut out and scaled to ``side`` px."""
    return Task(
        f"elpv-{side}-{label}",
        vit_s(side, share),
        alone(lambda folder: Elpv(folder, label)),
        probe="linear",
        folder=f"elpv-{side}",
        says=says,
        **options,
    )


TASKS = {
    task.name: task
    for task in (
        Task(
            "photographs",
            vit_s(224),
            alone(lambda _: crops()),
            says="16 crops of four photographs, 224 px: fidelity to the dense model, no labels",
            takes=("search",),
            limit=None,
        ),
        cells(224, "defect", "2,624 solar cells at 224 px: defect or not, five folds"),
        cells(224, "kind-defect", "the same images: mono or poly, times defect or not"),
        cells(
            294,
            "defect",
            "solar cells at their native resolution, cut to 294 px (21 x 21 patches), not resampled",
            share=294 / 300,
            takes=("headline",),
        ),
        cells(
            294,
            "kind-defect",
            "the same images: mono or poly, times defect or not",
            share=294 / 300,
            takes=("headline",),
        ),
        Task(
            "openclipart",
            vit_s(224),
            drawings,
            probe="linear",
            says="drawings in 16 classes by folder; training and test split by series of file names",
        ),
        Task(
            "scenes",
            vit_s(224, choice="package"),  # whose decoder it is
            alone(lambda folder: Scenes(folder, SCENES)),
            decode=saliency,
            says="composed scenes with exact masks: IoU and boundary IoU of the foreground, by the shipped decoder",
        ),
        Task(
            "fashion-train",
            small_vit,
            alone(lambda folder: fashion(folder, "train")),
            says="training images of Fashion-MNIST: only to choose the small ViT's schedules on",
            takes=("search",),
            limit=1000,
        ),
        Task(
            "fashion",
            small_vit,
            alone(fashion),
            says="10,000 test images of Fashion-MNIST, by the small ViT's own head",
            searched="fashion-train",
            limit=None,
        ),
    )
}
