"""torch.fx's symbolic tracing and torch.jit.script are refused on attached models, and say what to use."""

import pytest
import torch
from architectures import IMAGES, cases
from needs import library, made
from torch import nn

import tokengraph as tg
from tokengraph.select.expedite.expedite import Expedite
from tokengraph.testing import tiny_vit

CASES = cases()
KINDS = {
    "timm": ("timm", "vit_base_patch16_224"),
    "beit": ("timm", "beit_base_patch16_224"),
    "torchvision": ("torchvision", "VisionTransformer (vit_b_16, ...)"),
    "open_clip": ("open_clip", "VisionTransformer"),
    "own": ("torch", "nn.TransformerEncoder, by adapter="),
}
SPECIAL = {
    "convnext": tg.DynamicSpatial(),
    "swin": tg.WindowCoarsening(Expedite(clusters=(3, 3)), before=1),
    "swin, tome": tg.WindowCoarsening("tome", keep=32),
    "sam": tg.WindowCoarsening(Expedite(clusters=(2, 2)), before=1),
    "sam, tome": tg.WindowCoarsening("tome", keep=8),
}
LAYERS = {"convnext": "stages", "swin": "layers", "sam": "blocks"}


def special(name):
    timm = library("timm")
    if name == "convnext":
        return timm.models.ConvNeXt(depths=(1, 1, 6, 1), dims=(8, 16, 24, 32), num_classes=5).eval()
    if name.startswith("swin"):
        sizes = {"embed_dim": 24, "depths": (1, 1, 3, 1), "num_heads": (2, 2, 4, 4), "num_classes": 5}
        return timm.models.SwinTransformer(**sizes).eval()
    sizes = {"img_size": 64, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 4, "neck_chans": 8}
    return timm.models.VisionTransformerSAM(**sizes, window_size=4, global_attn_indexes=(3,)).eval()


@pytest.mark.parametrize("name", [name for name in KINDS if name != "own"])  # that cannot be traced in any case
def test_symbolic_tracing_of_an_attached_model_is_refused(name):
    case = CASES[KINDS[name]]
    model = made(case)
    with tg.attach(model, "tome", 3, adapter=case.adapter), torch.no_grad():
        before = case.run(model)
        with pytest.raises(RuntimeError, match=r"symbolic tracing, .*create_feature_extractor.*torch\.export"):
            torch.fx.symbolic_trace(model)
        assert all(map(torch.equal, case.run(model), before))


def test_create_feature_extractor_of_an_attached_model_is_refused():
    library("torchvision")
    from torchvision.models.feature_extraction import create_feature_extractor

    model = made(CASES[KINDS["torchvision"]])
    with tg.attach(model, "tome", 3), pytest.raises(RuntimeError, match="create_feature_extractor"):
        create_feature_extractor(model, ["encoder.ln"])
    assert create_feature_extractor(model, ["encoder.ln"])(IMAGES)["encoder.ln"].shape == (2, 17, 32)


@pytest.mark.parametrize("name", KINDS)
def test_scripting_of_an_attached_model_is_refused(name):
    case = CASES[KINDS[name]]
    model = made(case)
    with tg.attach(model, "tome", {3: 0.5}, adapter=case.adapter), torch.no_grad():
        before = case.run(model)
        for each in (model, nn.Sequential(model)):
            with pytest.raises(RuntimeError, match=r"torch\.jit\.script \(got an attached .*torch\.export"):
                torch.jit.script(each)
        assert all(map(torch.equal, case.run(model), before))


@pytest.mark.parametrize("name", SPECIAL)
def test_windows_and_maps_refuse_both_too(name):
    model = special(name)
    with tg.attach(model, SPECIAL[name]):
        with pytest.raises(RuntimeError, match=r"torch\.jit\.script"):
            torch.jit.script(model)
        with pytest.raises(RuntimeError, match="symbolic tracing"):
            torch.fx.Tracer().trace(
                next(m for m in (getattr(model, n, None) for n in ("layers", "stages", "blocks")) if m)
            )


def test_a_paused_model_can_be_scripted():
    model = tiny_vit()
    with tg.attach(model, "tome", 3) as handle, handle.paused():
        torch.testing.assert_close(torch.jit.script(model)(IMAGES), model(IMAGES))
