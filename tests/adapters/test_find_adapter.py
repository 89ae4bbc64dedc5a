"""find_adapter: which adapter it takes if several serve a model."""

import pytest
from needs import library
from torch import nn

import tokengraph as tg
from tokengraph import adapters
from tokengraph.adapters import ADAPTERS, find_adapter
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
