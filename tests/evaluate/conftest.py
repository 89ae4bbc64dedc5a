"""Tiny pictures and quick runs, for all tests of evaluations."""

import numpy as np
import pytest
from needs import library
from PIL import Image

from tokengraph.evaluate.images import Arrays
from tokengraph.evaluate.options import Options

library("timm")


@pytest.fixture
def quick():
    """Options of a run that measures no time and draws few samples."""
    return Options(
        batch_size=4, chunk=8, time=False, memory=False, resamples=50, progress=False, workers=0, device="cpu"
    )


@pytest.fixture
def pictures():
    """Twenty pictures of blobs in five classes."""
    rng = np.random.default_rng(0)
    labels = np.arange(20) % 5
    images = rng.integers(0, 60, (20, 40, 36, 3)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[6 * label : 6 * label + 12, 5:30] += 120
    return Arrays(images, labels, name="blobs")


@pytest.fixture
def folder(tmp_path, pictures):
    """The same as files in class folders."""
    for i in range(len(pictures)):
        path = tmp_path / "data" / f"class {pictures.label(i)}" / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pictures.image(i)).save(path)
    return tmp_path / "data"
