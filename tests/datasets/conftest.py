"""Small data sets of token graphs."""

import numpy as np
import pytest
from needs import library
from PIL import Image

from tokengraph.datasets import Recipe, write_dataset
from tokengraph.evaluate import Options
from tokengraph.testing import tiny_vit

RECIPE = Recipe(connect="knn:4", coarsen="ailurus:0.25")


@pytest.fixture
def quick():
    return Options(chunk=4, batch_size=4, workers=0, progress=False, device="cpu")


@pytest.fixture
def folder(tmp_path):
    """Two classes of nine pictures each, and a broken file in the first."""
    rng = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(9):
            pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    (tmp_path / "photos" / "a" / "5.png").write_bytes(b"no picture")
    return tmp_path / "photos"


@pytest.fixture
def written(folder, quick, tmp_path):
    library("timm")
    return write_dataset(tiny_vit(), folder, tmp_path / "set", RECIPE, options=quick)
