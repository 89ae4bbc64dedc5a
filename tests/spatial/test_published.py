"""Checkpoints of the published code under timm's names."""

import re

import pytest
import torch

import tokengraph as tg
from tokengraph.io.checkpoints import load_checkpoint
from tokengraph.spatial import DynamicSpatial, published_weights


def _published_convnext(state):
    """The names that the published ConvNeXt has for a timm state dict, part by part."""
    found = {}
    for name, value in state.items():
        if name.startswith("stem."):
            new = name.replace("stem.", "downsample_layers.0.")
        elif ".downsample." in name:
            new = re.sub(r"stages\.(\d)\.downsample", r"downsample_layers.\1", name)
        elif name.startswith("head.norm."):
            new = name.removeprefix("head.")
        elif name.startswith("head.fc."):
            new = name.replace("fc.", "")
        else:
            new = name.replace(".blocks", "").replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
        if "score_predictor" in name and value.dim() == 2:
            value = value[..., None, None]
        found[new] = value
    return found


def _published_swin(state):
    """The names that the published Swin has for a timm state dict."""
    found = {
        "layers.0.blocks.0.attn.relative_position_index": torch.zeros(1),
        "layers.2.blocks.1.attn_mask": torch.ones(1),
    }
    for name, value in state.items():
        new = re.sub(r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", name)
        found[new.replace("head.fc.", "head.")] = value
    return found


def test_published_checkpoints_load_completely(tiny, lively):
    source, x = tiny(), torch.randn(2, 3, 64, 64)
    lively(tg.attach(source, DynamicSpatial(0.7)))
    rename = _published_convnext if "convnext" in tiny.__name__ else _published_swin
    published = rename(source.state_dict())
    model = tiny()
    tg.attach(model, DynamicSpatial(0.7))
    report = load_checkpoint(model, published_weights(published))
    assert report.complete, report
    assert torch.equal(model(x), source(x))


@pytest.mark.parametrize(
    ("published", "ours"),
    [
        ("downsample_layers.0.1.weight", "stem.1.weight"),
        ("downsample_layers.2.1.bias", "stages.2.downsample.1.bias"),
        ("stages.2.11.dwconv.weight", "stages.2.blocks.11.conv_dw.weight"),
        ("stages.2.1.pwconv2.bias", "stages.2.blocks.1.mlp.fc2.bias"),
        ("stages.2.1.fast_path.0.weight", "stages.2.blocks.1.fast_path.0.weight"),
        ("stages.2.1.fast_path_gamma", "stages.2.blocks.1.fast_path_gamma"),
        ("score_predictor.2.out_conv.4.bias", "score_predictor.2.out_conv.4.bias"),
        ("norm.weight", "head.norm.weight"),
        ("head.weight", "head.fc.weight"),
    ],
)
def test_names_of_convnext(published, ours):
    mark = {"downsample_layers.0.0.weight": torch.zeros(1)}
    assert ours in published_weights(mark | {published: torch.zeros(1)})


@pytest.mark.parametrize(
    ("published", "ours"),
    [
        ("layers.1.downsample.norm.bias", "layers.2.downsample.norm.bias"),
        ("layers.2.score_predictor.0.in_conv.1.weight", "layers.2.score_predictor.0.in_conv.1.weight"),
        ("layers.2.blocks.1.fastmlp.fc1.0.weight", "layers.2.blocks.1.fastmlp.fc1.0.weight"),
        ("norm.weight", "norm.weight"),
        ("head.bias", "head.fc.bias"),
    ],
)
def test_names_of_swin(published, ours):
    mark = {"layers.0.downsample.reduction.weight": torch.zeros(1)}
    assert ours in published_weights(mark | {published: torch.zeros(1)})


def test_what_has_timm_names_stays():
    state = {"stages.2.blocks.1.gamma": torch.zeros(2), "head.fc.weight": torch.zeros(2, 2)}
    assert published_weights(state) == state


def test_convolutions_of_the_predictors_become_linear_layers():
    weight = torch.randn(4, 8, 1, 1)
    got = published_weights({"score_predictor.0.in_conv.1.weight": weight})["score_predictor.0.in_conv.1.weight"]
    assert torch.equal(got, weight[..., 0, 0])
