"""What every test gets."""

import gc
import random
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from needs import library

HERE = Path(__file__).parent / "reference"
SHARED = Path(__file__).parents[2] / "shared" / "reference"  # vectors too large for the repository


def pytest_collection_finish():
    """The garbage collector need not look through all that is imported again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)  # torch.compile makes many objects


def pytest_addoption(parser):
    parser.addoption(
        "--slow-seconds", type=float, help="of slow tests in each process; slow tests behind that are skipped"
    )


def pytest_collection_modifyitems(config, items):
    """With a limit, slow tests come in an order of this run's own, so that over many runs all of them run."""
    if config.getoption("slow_seconds") is not None:
        run = getattr(config, "workerinput", {}).get("testrunuid")  # the same in all processes: they must agree
        slow = [i for i, item in enumerate(items) if item.get_closest_marker("slow")]
        mixed = random.Random(run).sample(slow, len(slow))
        places = dict(zip(slow, mixed, strict=True))
        items[:] = [items[places.get(i, i)] for i in range(len(items))]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Adds up what slow tests took in this process."""
    start = time.monotonic()
    result = yield
    if item.get_closest_marker("slow"):
        item.config.slow_spent = getattr(item.config, "slow_spent", 0.0) + time.monotonic() - start
    return result


def pytest_runtest_setup(item):
    limit = item.config.getoption("slow_seconds")
    if limit is not None and item.get_closest_marker("slow") and getattr(item.config, "slow_spent", 0.0) >= limit:
        pytest.skip(f"slow tests of this process had their {limit:g} seconds; make test SLOW_SECONDS=inf runs all")


# Without a device the CPU's generator alone: torch.manual_seed also notes a stack trace for each kind of device.
seed_all = torch.manual_seed if torch.cuda.is_available() else torch.default_generator.manual_seed


@pytest.fixture(autouse=True)
def seed():
    seed_all(0)


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
