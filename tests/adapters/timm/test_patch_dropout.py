"""Patch dropout in train mode: works if the strategy needs no grid, else an error says what to do."""

import pytest
from architectures import IMAGES, spread
from needs import timm_model

import tokengraph as tg


def make(name="vit_tiny_patch16_224", rate=0.25):
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4, "num_classes": 5}
    return spread(lambda: timm_model(name, pretrained=False, **sizes, patch_drop_rate=rate)).train()


@pytest.mark.parametrize(
    "setting", [("tome", 3), ("topk", 3), ("dpc-knn", {1: 0.5}), ("token-migration", None)], ids=str
)
def test_what_needs_no_grid_takes_the_patches_that_are_there(setting):
    model = make()
    with tg.attach(model, *setting) as handle:
        model(IMAGES).sum().backward()
        assert handle.trace.counts[0] == 12
        assert handle.trace.lift(handle.trace.output).shape == (2, 12, 32)
        with pytest.raises(ValueError, match=r"4 x 4 patches \(got 12\).*model.eval\(\).*patch_drop_rate=0"):
            handle.trace.as_map()
        model.eval()(IMAGES)
        assert handle.trace.as_map().shape == (2, 32, 4, 4)


@pytest.mark.parametrize(
    "setting", [("expedite", {1: 0.25}), ("gtp", 3), ("grid-pool", {1: 0.5}), ("ailurus", {1: 0.5})]
)
def test_what_needs_the_grid_says_that_patches_were_dropped(setting):
    model = make()
    with tg.attach(model, *setting), pytest.raises(ValueError, match="(dropped|patch dropout) in train mode"):
        model(IMAGES)


def test_a_schedule_that_no_longer_fits_says_that_patches_were_dropped():
    model = make(rate=0.5)
    with (
        tg.attach(model, "dpc-knn", {1: 0.6, 2: 6}),
        pytest.raises(ValueError, match=r"image has 8 patches .*of 4 x 4 .the model drops patches in train mode"),
    ):
        model(IMAGES)


@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "vit_small_patch16_rope_mixed_ape_224"])
def test_rotary_tables_of_dropped_patches_are_refused_with_what_to_do(name):
    model = make(name)
    with tg.attach(model, "tome", 3):
        with pytest.raises(ValueError, match=r"patch dropout.*patch_drop_rate=0.*model.patch_drop = None"):
            model(IMAGES)
        model.patch_drop = None
        assert model(IMAGES).isfinite().all()
