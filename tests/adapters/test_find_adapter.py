"""find_adapter: which adapter it takes if several serve a model."""

import pytest
import torch
from needs import library
from torch import nn

import tokengraph as tg
from tokengraph import adapters
from tokengraph.adapters import ADAPTERS, _check_adapter, find_adapter
from tokengraph.adapters.base import strided_grid
from tokengraph.adapters.coarse import CoarseBlock
from tokengraph.adapters.timm.vit import TimmViT
from tokengraph.testing import tiny_vit

library("timm")


class Theirs(TimmViT):
    """A user's own adapter, for models that another one serves already."""


@pytest.mark.parametrize("wrap", [lambda model: model, nn.Sequential], ids=["itself", "inside"])
def test_the_first_adapter_that_serves_a_model_wins(wrap, monkeypatch):
    model, theirs = tiny_vit(), Theirs()
    monkeypatch.setattr(adapters, "ADAPTERS", [*ADAPTERS, theirs])
    found, adapter = find_adapter(wrap(model))
    assert found is model and type(adapter) is TimmViT
    monkeypatch.setattr(adapters, "ADAPTERS", [theirs, *ADAPTERS])
    assert find_adapter(wrap(model)) == (model, theirs)


def test_a_model_that_is_served_comes_before_one_inside_it():
    model = tiny_vit()
    model.teacher = tiny_vit()
    assert find_adapter(model)[0] is model


@pytest.mark.parametrize(
    ("module", "name", "says"),
    [
        ("dinov2.models.vision_transformer", "DinoVisionTransformer", "original DINOv2.*vit_small_patch14_dinov2"),
        ("dinov3.models.vision_transformer", "DinoVisionTransformer", "original DINOv3.*vit_small_patch16_dinov3"),
        ("clip.model", "CLIP", "openai/CLIP.*open_clip.create_model.*timm.create_model.*transformers.CLIPModel"),
        ("clip.model", "VisionTransformer", "openai/CLIP"),
    ],
)
def test_original_code_of_published_weights_is_told_where_they_load(module, name, says):
    original = type(name, (nn.Module,), {"__module__": module})
    for model in (original(), nn.Sequential(original())):
        with pytest.raises(ValueError, match=f"got {name} of .*{says}"):
            tg.attach(model, "tome", 2)
    mine = type(name, (nn.Module,), {"__module__": "clipping.model"})
    with pytest.raises(ValueError, match="Supported: timm"):
        tg.attach(mine(), "tome", 2)


class NoFamily(Theirs):
    family = None


class NoMixin(Theirs):
    block_mixin = None


class NotCoarse(Theirs):
    block_mixin = nn.Module


class NoForward(Theirs):
    block_mixin = type("Empty", (CoarseBlock,), {})


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (Theirs, r"Give an instance: Theirs\(\)"),
        (NoFamily(), "NoFamily.family as a str"),
        (NoMixin(), "NoMixin.block_mixin as a subclass of CoarseBlock with a forward .got None"),
        (NotCoarse(), "NotCoarse.block_mixin as a subclass of CoarseBlock"),
        (NoForward(), "with a forward .got <class .*Empty"),
    ],
)
def test_find_adapter_says_what_a_new_adapter_lacks(adapter, message):
    with pytest.raises(TypeError, match=message):
        find_adapter(tiny_vit(), adapter)


def test_find_adapter_says_that_an_adapter_does_not_serve_the_model():
    with pytest.raises(ValueError, match=r"serves Linear \(got TimmViT, whose serves\(\) is False\)"):
        find_adapter(nn.Linear(2, 2), TimmViT())


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda a: type(a).__name__)
def test_registered_adapters_are_complete(adapter):
    _check_adapter(adapter)


def test_strided_grid_wants_a_convolution():
    with pytest.raises(TypeError, match=r"convolution \(got Linear\).*image_grid"):
        strided_grid(nn.Linear(2, 2), torch.zeros(1, 3, 8, 8))
