"""DynamicSpatial attached to stock models: parts go in, come out again, and other models are refused."""

import copy
import io

import pytest
import torch
from needs import library
from spatial_cases import images, stage_of
from torch import nn
from torch.testing import assert_close

import tokengraph as tg
from tokengraph.attach.attach import detach
from tokengraph.spatial import DynamicSpatial
from tokengraph.testing import tiny_vit

timm = library("timm")


@pytest.mark.parametrize(("depth", "layers"), [(6, (1, 2, 3)), (9, (1, 2, 3)), (18, (2, 4, 6)), (27, (3, 6, 9))])
def test_layers_are_the_published_ones(tiny, depth, layers):
    assert tg.attach(tiny(depths=(1, 1, depth, 1)), DynamicSpatial()).select.layers == layers


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("convnext_tiny", (1, 2, 3)),
        ("convnext_small", (3, 6, 9)),
        ("convnext_base", (3, 6, 9)),
        ("swin_tiny_patch4_window7_224", (1, 2, 3)),
        ("swin_small_patch4_window7_224", (2, 4, 6)),
        ("swin_base_patch4_window7_224", (2, 4, 6)),
    ],
)
def test_models_of_the_publication_are_served(name, layers, weightless):
    with tg.attach(weightless(name), DynamicSpatial(0.7)) as handle:
        assert handle.select.layers == layers


def test_remove_restores_the_stock_model(tiny, lively):
    model, x = tiny(), images()
    before, dense, classes = set(model.state_dict()), model(x), [type(m) for m in model.modules()]
    handle = lively(tg.attach(model, DynamicSpatial(0.7)))
    assert before < set(model.state_dict()) and not torch.equal(model(x), dense)
    handle.remove()
    handle.remove()
    assert set(model.state_dict()) == before and [type(m) for m in model.modules()] == classes
    assert torch.equal(model(x), dense)
    assert not any("_tokengraph" in m.__dict__ for m in model.modules())


def test_detach_takes_it_out_of_a_copy_only(tiny):
    model = tiny()
    before = set(model.state_dict())
    tg.attach(model, DynamicSpatial(0.7))
    copied = copy.deepcopy(model)
    detach(copied)
    assert set(copied.state_dict()) == before != set(model.state_dict())


def test_parts_have_their_published_names():
    convnext = timm.models.ConvNeXt(depths=(1, 1, 4, 1), dims=(8, 8, 16, 16))
    swin = timm.models.SwinTransformer(img_size=64, patch_size=2, embed_dim=12, depths=(1, 1, 4, 1), window_size=4)
    predictor = {f"in_conv.{i}.{p}" for i in (0, 1) for p in ("weight", "bias")}
    predictor |= {f"out_conv.{i}.{p}" for i in (0, 2, 4) for p in ("weight", "bias")}
    for model, host, paths in (
        (convnext, "", {"stages.2.blocks.{}.fast_path.0", "stages.2.blocks.{}.fast_path.1"}),
        (swin, "layers.2.", {"layers.2.blocks.{}.fastmlp.fc1.0", "layers.2.blocks.{}.fastmlp.fc1.1"}),
    ):
        before = set(model.state_dict())
        tg.attach(model, DynamicSpatial(0.7))
        expected = {f"{host}score_predictor.{s}.{name}" for s in range(3) for name in predictor}
        expected |= {f"{path.format(i)}.{p}" for path in paths for i in (1, 2, 3) for p in ("weight", "bias")}
        if host == "":
            expected |= {f"stages.2.blocks.{i}.fast_path_gamma" for i in (1, 2, 3)}
        assert set(model.state_dict()) - before == expected


def test_copies_and_saved_models_are_attached_too(tiny, lively):
    model, x = tiny(), images()
    lively(tg.attach(model, DynamicSpatial(0.7)))
    model.train()(x)  # decisions with a graph behind them cannot be copied
    model.eval()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert_close(other(x), model(x))
        with torch.no_grad():  # the copy runs its own predictors
            for name, parameter in other.named_parameters():
                if "score_predictor" in name:
                    parameter.neg_()
        assert not torch.equal(other(x), model(x))


def test_a_state_dict_brings_everything_along(tiny, lively):
    model, x = tiny(), images()
    lively(tg.attach(model, DynamicSpatial(0.7)))
    fresh = tiny()
    tg.attach(fresh, DynamicSpatial(0.7))
    fresh.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(fresh(x), model(x))


def test_the_bound_strategy_keeps_its_weights(tiny, lively):
    model, x = tiny(), images()
    handle = lively(tg.attach(model, DynamicSpatial(0.7)))
    out = model(x)
    handle.remove()
    tg.attach(model, handle.select)
    assert torch.equal(model(x), out)


def test_parts_follow_the_device_dtype_and_mode_of_the_model(tiny):
    model = tiny().double().train()
    for p in model.parameters():
        p.requires_grad_(False)
    handle = tg.attach(model, DynamicSpatial(0.7))
    parts = [*handle.select.predictors.parameters()]
    parts += [p for each in handle.select.fast for part in each.values() for p in _parameters(part)]
    assert all(p.dtype == torch.float64 and p.requires_grad for p in parts)
    assert handle.select.predictors.training and not handle.select.predictors.eval().training


def _parameters(part):
    return [part] if isinstance(part, nn.Parameter) else list(part.parameters())


def test_a_wrapper_is_looked_into_and_the_class_alone_is_enough(tiny):
    model, x = tiny(), images()
    with tg.attach(nn.Sequential(model), DynamicSpatial) as handle:
        handle(x)
        assert len(handle.trace.decisions) == 3
    assert not hasattr(stage_of(model), "score_predictor")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0.4}, r"shares in \(0, 1\].*keep must be above 0.4"),
        ({"ratios": [1.2]}, r"shares in \(0, 1\]"),
        ({"layers": [2, 1, 3]}, "layers that rise"),
        ({"layers": [1]}, "one ratio a layer"),
        ({"threshold": 0.0}, r"threshold in \(0, 1\)"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DynamicSpatial(**options)


def test_what_does_not_fit_is_refused_before_anything_changes(tiny):
    model = tiny()
    before = set(model.state_dict())
    with pytest.raises(ValueError, match="layers below 4"):
        tg.attach(model, DynamicSpatial(layers=[1, 2, 4]))
    with pytest.raises(ValueError, match="DynamicSpatial alone"):
        tg.attach(model, DynamicSpatial(), 4)
    assert set(model.state_dict()) == before
    tg.attach(model, DynamicSpatial())
    with pytest.raises(ValueError, match="Call remove"):
        tg.attach(model, DynamicSpatial())


def test_other_models_are_refused_by_name(tiny):
    with pytest.raises(ValueError, match=r"got VisionTransformer\). For plain ViTs use tg\.DynamicViT"):
        tg.attach(tiny_vit(), DynamicSpatial())
    with pytest.raises(ValueError, match="2 inside"):
        tg.attach(nn.Sequential(tiny(), tiny()), DynamicSpatial())
    with pytest.raises(TypeError, match="nn.Module"):
        tg.attach("swin", DynamicSpatial())


def test_a_swin_of_three_stages_is_refused():
    model = timm.models.SwinTransformer(img_size=32, embed_dim=6, depths=(1, 1, 4), num_heads=(1, 1, 2), window_size=2)
    with pytest.raises(ValueError, match="of 4 stages"):
        tg.attach(model, DynamicSpatial())


@pytest.mark.parametrize("norm", ["batchnorm2d", "groupnorm1"])
def test_convnexts_whose_norm_reads_other_positions_are_refused(norm):
    sizes = {"depths": (1, 1, 4, 1), "dims": (8, 8, 16, 16)}
    with pytest.raises(ValueError, match="Norm.*, which may read other positions or images"):
        tg.attach(timm.models.ConvNeXt(**sizes, conv_mlp=True, norm_layer=norm), DynamicSpatial())


def test_blocks_with_unknown_parts_are_refused(tiny):
    model = tiny()
    block = stage_of(model).blocks[2]

    class Doubled(type(block)):
        def forward(self, x):
            return 2 * super().forward(x)

    block.__class__ = Doubled
    with pytest.raises(ValueError, match="Doubled to be spatial mixing and an MLP"):
        tg.attach(model, DynamicSpatial())
    assert type(block) is Doubled
