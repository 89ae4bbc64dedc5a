"""What every test gets."""

from pathlib import Path

import numpy as np
import pytest
import torch
from needs import library

HERE = Path(__file__).parent / "reference"
SHARED = Path(__file__).parents[2] / "shared" / "reference"  # vectors too large for the repository


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def weightless():
    """Makes a large model of timm by name, without memory for its weights where timm can do that (1.0.21 and later)."""

    def make(name):
        timm = library("timm")
        try:
            return timm.create_model(name, pretrained=False, device="meta")
        except TypeError as error:
            assert "device" in str(error)
            return timm.create_model(name, pretrained=False)

    return make


@pytest.fixture
def vectors():
    """Arrays of a published code, ``vectors("gtp", "block_a")``: tensors by name, strings as they are."""

    def load(system, name):
        found = [folder / system / f"{name}.npz" for folder in (HERE, SHARED)]
        file = next((f for f in found if f.exists()), None)
        if file is None:
            pytest.skip(f"{name}.npz is above 200 KB and not in the repository, and not beside the checkout either")
        arrays = np.load(file, allow_pickle=False)
        return {k: str(arrays[k]) if arrays[k].dtype.kind == "U" else torch.from_numpy(arrays[k]) for k in arrays}

    return load
