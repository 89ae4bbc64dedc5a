"""Plans with a resolution: models of every library scale their images and resample positions, and are as before."""

import copy

import pytest
import torch
import torch.nn.functional as F
from needs import library

import tokengraph as tg
from tokengraph.adapters import find_adapter
from tokengraph.attach.resize import resample_table, resizable
from tokengraph.evaluate.settings import Setting
from tokengraph.planning import Plan, Target

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SMALL = F.interpolate(IMAGES, (24, 24), mode="bicubic", antialias=True)
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}


def vit(transformers):
    config = transformers.ViTConfig(**SIZES, intermediate_size=64)
    return transformers.ViTModel(config), lambda model: model(SMALL, interpolate_pos_encoding=True).last_hidden_state


def dinov2(transformers):
    model = transformers.Dinov2Model(transformers.Dinov2Config(**SIZES, mlp_ratio=2))
    return model, lambda model: model(SMALL).last_hidden_state


def torchvision_vit(torchvision):
    made = [
        torchvision.models.VisionTransformer(
            image_size=size, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=5
        )
        for size in (32, 24)
    ]
    return made[0], _resampled(made[1], "encoder.pos_embedding")


def open_clip_vit(open_clip):
    made = [
        open_clip.transformer.VisionTransformer(
            image_size=size, patch_size=8, width=32, layers=2, heads=2, mlp_ratio=2.0, output_dim=8
        )
        for size in (32, 24)
    ]
    return made[0], _resampled(made[1], "positional_embedding")


def _resampled(small, table):
    """Runs a model that was built for the small images, with the weights of the other one."""

    def run(model):
        weights = copy.deepcopy(model.state_dict())
        weights[table] = resample_table(weights[table], 3)
        small.load_state_dict(weights)
        small.to(next(model.parameters()).dtype).eval()
        return small(SMALL.to(next(model.parameters()).dtype))

    return run


MODELS = {
    "vit": ("transformers", vit),
    "dinov2": ("transformers", dinov2),
    "torchvision": ("torchvision", torchvision_vit),
    "open_clip": ("open_clip", open_clip_vit),
}


@pytest.fixture(params=MODELS)
def model_and_reference(request):
    name, make = MODELS[request.param]
    torch.manual_seed(0)
    model, reference = make(pytest.importorskip(name) if name == "open_clip" else library(name))
    return model.eval(), reference


def plan_for(model, tokens, **setting):
    core, adapter = find_adapter(model)
    target = Target(type(model).__name__, 2, adapter.channels(core), 4, 16)
    return Plan(Setting(resolution=24, **setting), tokens, target)


def output(found):
    return found if isinstance(found, torch.Tensor) else found.last_hidden_state


@torch.no_grad()
def test_attach_scales_images_and_positions_as_a_smaller_model(model_and_reference):
    model, reference = model_and_reference
    core, adapter = find_adapter(model)
    assert resizable(core, adapter)
    before, plain = copy.deepcopy(model.state_dict()), output(model(IMAGES))
    expected = reference(model)
    with tg.attach(model, plan_for(model, (9, 9, 9))) as handle:
        found = output(handle(IMAGES))
        assert handle.trace.counts == [9, 9, 9]
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.equal(output(model(IMAGES)), plain)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@torch.no_grad()
def test_attach_merges_on_the_smaller_image(model_and_reference):
    model, _ = model_and_reference
    with tg.attach(model, plan_for(model, (9, 7, 6), strategy="tome", schedule=[2, 1])) as handle:
        assert output(handle(IMAGES)).isfinite().all()
        assert handle.trace.counts == [9, 7, 6]
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_plan_tries_smaller_images(model_and_reference):
    model, _ = model_and_reference
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    found = tg.plan(model, images, cost=0.58, strategies="none", progress=False)
    assert found.setting.resolution == 24 and found.tokens == (9, 9, 9)
    loss = tg.fidelity(model, images[2:], found)
    assert loss.class_cosine == pytest.approx(found.measured.class_cosine, abs=1e-6)
