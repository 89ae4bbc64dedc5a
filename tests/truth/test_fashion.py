"""The training example: resumed it ends where one run ends, and its weights serve three channels."""

import gzip
import importlib.util
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from needs import library

library("timm")

from truth.fashion import DATA, fashion, fashion_vit, weights  # noqa: E402

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "train_fashion_vit.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("train_fashion_vit", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path):
    """Twelve images of noise in the files that the package has."""
    rng = np.random.default_rng(0)
    where = tmp_path / DATA
    where.mkdir(parents=True)
    for part in ("train", "t10k"):
        pixels, labels = rng.integers(0, 256, (12, 28, 28), dtype=np.uint8), rng.integers(0, 10, 12, dtype=np.uint8)
        for kind, head, content in (
            ("images-idx3", struct.pack(">IIII", 2051, 12, 28, 28), pixels),
            ("labels-idx1", struct.pack(">II", 2049, 12), labels),
        ):
            with gzip.open(where / f"{part}-{kind}-ubyte.gz", "wb") as file:
                file.write(head + content.tobytes())
    return tmp_path


def train(example, folder, out, *words):
    args = example.options(["--data", str(folder / DATA), "--out", str(folder / out), "--images", "12", *words])
    args.out.mkdir(exist_ok=True)
    args.batch, args.epochs = 4, 2
    return example.train(args)


def test_training_resumed_ends_with_the_same_weights(example, folder):
    whole, steps = train(example, folder, "a")
    _, stopped = train(example, folder, "b", "--stop-after", "4")
    resumed, end = train(example, folder, "b")
    assert (steps, stopped, end) == (6, 4, 6)
    for (name, one), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_fashion_vit_gives_on_three_channels_what_it_gives_on_one(example, folder, tmp_path):
    model = example.make_model(0)
    half = {name: value.half() for name, value in model.state_dict().items()}
    file = tmp_path / "w.pt"
    torch.save({"shape": example.SHAPE, "mean": 0.0, "std": 1.0, "accuracy": 0.1, "weights": half}, file)
    model.load_state_dict({name: value.float() for name, value in half.items()})
    x = torch.rand(2, 1, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(fashion_vit(file)(x.repeat(1, 3, 1, 1)), model.eval()(x), atol=1e-5, rtol=1e-5)
        assert fashion_vit(file, 20)(torch.rand(1, 3, 20, 20)).shape == (1, 10)
    with pytest.raises(ValueError, match="multiple of 4 .got 21"):
        fashion_vit(file, 21)
    assert weights(file)["accuracy"] == 0.1


def test_fashion_reads_images_and_labels(folder):
    images = fashion(folder)
    assert len(images) == 12 and images.image(0).shape == (28, 28) and 0 <= images.label(3) < 10
