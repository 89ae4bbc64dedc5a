"""paused: the plain model inside a ``with``, everything attached again afterwards, for every kind of attachment."""

import copy

import pytest
import torch
from architectures import IMAGES, cases
from needs import library, made

import tokengraph as tg
from tokengraph.attach.attach import detach
from tokengraph.select.expedite.expedite import Expedite
from tokengraph.testing import tiny_vit

timm = library("timm")

CASES = {name: case for name, case in cases().items() if not name[1].startswith("naflex")}
SIZES = {"img_size": 56, "num_classes": 5}
SWIN = SIZES | {"embed_dim": 24, "depths": (1, 1, 3, 1), "num_heads": (2, 2, 4, 4)}
SPECIAL = {
    "spatial": (lambda: timm.models.ConvNeXt(depths=(1, 1, 6, 1), dims=(8, 16, 24, 32), num_classes=5), None),
    "spatial swin": (lambda: timm.models.SwinTransformer(**SWIN | {"img_size": 224, "depths": (1, 1, 6, 1)}), None),
    "windows": (
        lambda: timm.models.SwinTransformer(**SWIN | {"img_size": 224}),
        lambda: tg.WindowCoarsening(Expedite(clusters=(3, 3)), before=1),
    ),
    "windows, tome": (
        lambda: timm.models.SwinTransformer(**SWIN | {"img_size": 224}),
        lambda: tg.WindowCoarsening("tome", keep=32),
    ),
    "sam": (
        lambda: timm.models.VisionTransformerSAM(
            img_size=64, patch_size=8, embed_dim=32, depth=4, num_heads=4, window_size=4, global_attn_indexes=(3,),
            neck_chans=8, num_classes=5,
        ),
        lambda: tg.WindowCoarsening(Expedite(clusters=(2, 2)), before=1),
    ),
}  # fmt: skip


def kept(model):
    """Classes and hooks of every module, and what it carries."""
    return [
        (type(m), list(m._forward_hooks.items()), list(m._forward_pre_hooks.items()), m.__dict__.get("_tokengraph"))
        for m in model.modules()
    ]


def check(model, attach, run):
    """The plain outputs in the pause, bit for bit; before and after it the coarse ones."""
    with torch.no_grad():
        plain = run()
        with attach() as handle:
            coarse, before = run(), kept(model)
            with handle.paused() as same:
                assert same is model
                for a, b in zip(run(), plain, strict=True):
                    assert torch.equal(a, b)
                assert not any(type(m).__name__.startswith("Coarse") for m in model.modules())
                assert not any(
                    getattr(h, "of_tokengraph", False) for _, *tables, _ in kept(model) for t in tables for _, h in t
                )
            assert kept(model) == before
            for a, b in zip(run(), coarse, strict=True):
                assert torch.equal(a, b)
        for a, b in zip(run(), plain, strict=True):
            assert torch.equal(a, b)
    assert not any("_tokengraph" in m.__dict__ for m in model.modules())


@pytest.mark.parametrize("name", CASES, ids="/".join)
def test_a_paused_model_of_every_family_is_the_plain_one(name):
    case = CASES[name]
    model = made(case)

    def run():
        torch.manual_seed(0)  # ViTMAE shuffles
        return case.run(model)

    check(model, lambda: tg.attach(model, "tome", 3, adapter=case.adapter), run)


@pytest.mark.parametrize("name", SPECIAL)
def test_a_paused_model_of_windows_or_maps_is_the_plain_one(name):
    build, select = SPECIAL[name]
    model = build().eval()
    size = 64 if name == "sam" else 224
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    check(model, lambda: tg.attach(model, tg.DynamicSpatial() if select is None else select()), lambda: [model(images)])


def test_an_evaluation_inside_training_goes_through_the_plain_model():
    model = tiny_vit().train()
    with tg.attach(model, tg.DynamicViT(0.5)) as handle:
        model(IMAGES).sum().backward()
        with handle.paused() as plain, torch.no_grad():
            plain.eval()(IMAGES)
            assert handle.trace.counts == [16, 16, 16, 16]  # the last run's record is still there
        model.train()(IMAGES).sum().backward()
        assert model.score_predictor[0].in_conv[0].weight.grad is not None or handle.trace.decisions


def test_a_forward_from_before_a_pause_has_its_backward_behind_it():
    model, images = tiny_vit().train(), IMAGES.clone().requires_grad_()
    model.set_grad_checkpointing()
    with tg.attach(model, "tome", 3) as handle:
        loss = model(images).sum()
        with handle.paused(), torch.no_grad():
            model(IMAGES)
        loss.backward()
        assert images.grad.abs().sum() > 0


def test_a_pause_ends_after_an_error_and_pauses_can_be_nested():
    model = tiny_vit()
    with tg.attach(model, "tome", 3) as handle:
        before = kept(model)
        with pytest.raises(KeyError), handle.paused(), handle.paused():
            raise KeyError
        assert kept(model) == before


def test_what_is_removed_in_a_pause_stays_out():
    model = tiny_vit()
    handle = tg.attach(model, "tome", 3)
    with handle.paused():
        handle.remove()
        with tg.attach(model, "topk", 4) as other:
            model(IMAGES)
            assert other.trace.counts == [16, 12, 8, 4]
    assert not any("_tokengraph" in m.__dict__ or type(m).__name__.startswith("Coarse") for m in model.modules())


def test_a_paused_model_refuses_another_strategy_and_its_copy_can_be_detached():
    model = tiny_vit()
    with tg.attach(model, "tome", 3) as handle, handle.paused():
        with pytest.raises(ValueError, match="got an attached one"):
            tg.attach(model, "topk", 3)
        twin = copy.deepcopy(model)
    detach(twin)
    assert not any("_tokengraph" in m.__dict__ for m in twin.modules())
    tg.attach(twin, "topk", 3).remove()


def test_hooks_of_the_user_keep_their_places():
    model = tiny_vit()
    calls = []
    first = model.patch_embed.register_forward_pre_hook(lambda *_: calls.append("first"))
    with tg.attach(model, "tome", 3) as handle:
        model.patch_embed.register_forward_pre_hook(lambda *_: calls.append("second"))
        with handle.paused():
            first.remove()
            model.patch_embed.register_forward_pre_hook(lambda *_: calls.append("third"))
        model(IMAGES)
        assert calls == ["second", "third"] and handle.trace.counts == [16, 13, 10, 7]


def test_a_compiled_model_is_the_plain_one_in_a_pause():
    torch.compiler.reset()
    model = tiny_vit()
    with torch.no_grad():
        plain, compiled = model(IMAGES), torch.compile(model, backend="eager")
        with tg.attach(model, "tome", 3) as handle:
            coarse = compiled(IMAGES)
            with handle.paused():
                torch.testing.assert_close(compiled(IMAGES), plain)
            torch.testing.assert_close(compiled(IMAGES), coarse)
        assert not torch.allclose(coarse, plain)
