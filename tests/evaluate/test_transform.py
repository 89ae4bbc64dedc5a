"""Preprocessing: as timm evaluates, for images of every mode."""

import numpy as np
import pytest
import torch
from needs import library
from PIL import Image

from tokengraph.evaluate.config import DataConfig, config_of_model, of_timm
from tokengraph.evaluate.transform import to_input, to_target
from tokengraph.testing import tiny_vit


def picture(width, height, mode="RGB"):
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height)).convert(mode)


@pytest.mark.parametrize("crop_pct", [1.0, 0.9, 0.875])
@pytest.mark.parametrize("sides", [(50, 37), (37, 50), (40, 40), (20, 61)])
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_to_input_is_what_timm_evaluates_with(crop_pct, sides, crop_mode):
    timm = library("timm")
    config = DataConfig(32, crop_pct=crop_pct, crop_mode=crop_mode)
    theirs = timm.data.create_transform(
        (3, 32, 32), interpolation="bicubic", mean=config.mean, std=config.std, crop_pct=crop_pct, crop_mode=crop_mode
    )
    torch.testing.assert_close(to_input(picture(*sides), config), theirs(picture(*sides)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK", "I;16", "F"])
def test_to_input_takes_images_of_every_mode(mode):
    source = picture(40, 40, "L" if mode in ("I;16", "F") else "RGB")
    image = Image.fromarray(np.asarray(source).astype({"I;16": np.uint16, "F": np.float32}.get(mode, np.uint8)))
    image = image if mode in ("I;16", "F") else image.convert(mode)
    found = to_input(image, DataConfig(32, (0.0,) * 3, (1.0,) * 3))
    assert found.shape == (3, 32, 32) and 0 <= found.min() and found.max() <= 1 and found.std() > 0


def test_to_input_takes_arrays_and_refuses_others():
    array = np.asarray(picture(40, 32))
    config = DataConfig(32)
    assert torch.equal(to_input(array, config), to_input(picture(40, 32), config))
    assert torch.equal(to_input(array[..., 0], config), to_input(array[..., :1], config))
    for wrong in (array.astype(np.float32), array[None], array[..., :2]):
        with pytest.raises(ValueError, match=r"Expected an image as uint8 \[H, W\] or \[H, W, 3\]"):
            to_input(wrong, config)


@pytest.mark.parametrize(
    ("config", "sides"), [(DataConfig(32, crop_pct=0.8), (50, 70)), (DataConfig(32, crop_mode="squash"), (70, 50))]
)
def test_to_target_cuts_a_mask_as_its_image(config, sides):
    image = np.zeros((sides[1], sides[0], 3), dtype=np.uint8)
    image[10:30, 20:45] = 255
    target = to_target((image[..., 0] > 0).astype(np.uint8), config)
    light = to_input(image, DataConfig(32, (0.0,) * 3, (1.0,) * 3, "nearest", config.crop_pct, config.crop_mode))
    assert target.tolist() == (light[0] > 0.5).long().tolist() and 0 < target.sum() < 32 * 32


def test_to_target_keeps_class_numbers_and_marks_padding():
    target = to_target(np.full((8, 32), 7, dtype=np.uint8), DataConfig(32, crop_mode="border"))
    assert sorted(set(target.flatten().tolist())) == [7, 255]
    with pytest.raises(ValueError, match=r"Expected a mask of shape \[H, W\] .got \[4, 4, 3\]"):
        to_target(np.zeros((4, 4, 3)), DataConfig(32))


def test_config_of_model_reads_the_checkpoints_own():
    model = tiny_vit()
    model.pretrained_cfg = {"input_size": (3, 224, 224), "crop_pct": 0.9, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    found = config_of_model(model)
    assert (found.size, found.crop_pct, found.mean, found.std) == (32, 0.9, (0.5,) * 3, (0.25,) * 3)  # its own size
    assert found.at(24).size == 24 and found.at(None) is found


def test_config_of_model_finds_size_and_mean_in_other_libraries():
    transformers = library("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=24, patch_size=8
    )
    found = config_of_model(transformers.ViTModel(config))
    assert (found.size, found.mean) == (24, (0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match="known image size .got Linear.*Source.* of tokengraph.evaluate"):
        config_of_model(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": 0}, "at least 1 pixel"),
        ({"crop_pct": 0.0}, r"crop_pct in \(0, 1\]"),
        ({"interpolation": "cubic"}, "Expected interpolation: nearest"),
        ({"crop_mode": "five"}, "Expected crop_mode: center"),
    ],
)
def test_data_config_refuses_what_cannot_be(wrong, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**{"size": 32, **wrong})


def test_of_timm_refuses_images_that_are_not_square():
    with pytest.raises(ValueError, match="square images with 3 channels .got 3 x 32 x 64"):
        of_timm({"input_size": (3, 32, 64), "mean": (0,), "std": (1,), "interpolation": "bicubic", "crop_pct": 1})
