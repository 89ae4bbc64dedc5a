"""WindowCoarsening refuses other models and options; its errors say why."""

import pytest
import torch
from needs import library
from torch import nn

import tokengraph as tg
from tokengraph.select.expedite.expedite import Expedite
from tokengraph.select.peaks.dpc_knn import DPCKNN
from tokengraph.spatial import DynamicSpatial
from tokengraph.testing import tiny_vit
from tokengraph.windows import WindowCoarsening

library("timm")

SMALL = Expedite(clusters=(3, 3))
KINDS = {"expedite": WindowCoarsening(SMALL, before=1), "tome": WindowCoarsening("tome", keep=9)}


@pytest.mark.parametrize("model", [nn.Linear(2, 2), tiny_vit()])
def test_models_without_windows_are_refused(model):
    with pytest.raises(
        ValueError, match=r"Expected timm's VisionTransformerSAM, SwinTransformer .*attach\(model, 'tome', 8\)"
    ):
        tg.attach(model, KINDS["tome"])


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("swinv2_cr_tiny_224", r"SwinTransformerV2Cr.*Use SwinTransformerV2"),
        ("convnext_tiny", r"ConvNeXt.*DynamicSpatial"),
    ],
)
def test_other_hierarchies_are_refused_by_name(name, hint, weightless):
    with pytest.raises(ValueError, match=hint):
        tg.attach(weightless(name), KINDS["expedite"])


def test_rotary_positions_are_refused_for_clusters_and_served_with_merging(sam):
    model, x = sam(use_rel_pos=False, use_rope=True), torch.randn(1, 3, 80, 80)
    with pytest.raises(ValueError, match=r"rotary.*Use ToMe"):
        tg.attach(model, KINDS["expedite"])
    assert not any("_tokengraph" in m.__dict__ for m in model.modules())
    assert torch.isfinite(tg.attach(model, KINDS["tome"])(x)).all()


def test_a_block_with_a_part_that_is_not_known_is_refused(tiny):
    model = tiny()
    block = model.blocks[1] if hasattr(model, "neck") else model.layers[2].blocks[1]

    class Odd(type(block)):
        def forward(self, x):
            return super().forward(x) + 1

    block.__class__ = Odd
    with pytest.raises(ValueError, match="Expected Odd to be window attention and an MLP"):
        tg.attach(model, KINDS["expedite"])


def test_attaching_twice_is_refused(tiny):
    model = tiny()
    tg.attach(model, KINDS["tome"])
    for second in (KINDS["expedite"], DynamicSpatial(0.7)):
        with pytest.raises(ValueError, match="without a strategy|for DynamicSpatial"):
            tg.attach(model, second)


def test_options_that_do_not_fit_are_refused(sam, swin):
    with pytest.raises(ValueError, match=r"Expected Expedite, CubistMerge or ToMe for windows \(got DPCKNN\)"):
        WindowCoarsening(DPCKNN(), keep=9)
    with pytest.raises(ValueError, match=r"got neither"):
        WindowCoarsening("tome")
    with pytest.raises(ValueError, match=r"got both, keep=9 and clusters=9"):
        WindowCoarsening(SMALL, keep=9)
    with pytest.raises(ValueError, match=r"keep ratio in \(0, 1\]"):
        WindowCoarsening("tome", keep=1.5)
    with pytest.raises(ValueError, match=r"padding to be one of tokens, ignore \(got 'zero'\)"):
        WindowCoarsening(SMALL, padding="zero")
    with pytest.raises(ValueError, match=r"Expected keep >= 8 of 16 tokens for ToMe \(got 7\)"):
        tg.attach(sam(), WindowCoarsening("tome", keep=7))
    with pytest.raises(ValueError, match=r"a grid from \(2, 2\) to \(4, 4\) in each window .*\(got keep=3\)"):
        tg.attach(sam(), WindowCoarsening("cubist-merge", keep=3))
    with pytest.raises(ValueError, match=r"in each window for CubistMerge \(got \(1, 4\)\)"):
        tg.attach(sam(), WindowCoarsening(tg.CubistMerge(coarse=(1, 4))))
    with pytest.raises(ValueError, match=r"got both, keep=9 and clusters=9"):
        WindowCoarsening(tg.CubistMerge(coarse=(3, 3)), keep=9)
    with pytest.raises(ValueError, match=r"Expected clusters within windows of \(4, 4\) \(got \(5, 5\)\)"):
        tg.attach(sam(), WindowCoarsening(Expedite(clusters=(5, 5))))
    with pytest.raises(ValueError, match=r"0 <= before < until <= 4 blocks \(got before=4, until=4\)"):
        tg.attach(swin(), WindowCoarsening(SMALL, before=4))
    with pytest.raises(ValueError, match=r"Expected 0 <= stage < 4, .* \(got stage=4\)"):
        tg.attach(swin(), WindowCoarsening(SMALL, stage=4))
    with pytest.raises(ValueError, match=r"Expected no stage for VisionTransformerSAM"):
        tg.attach(sam(), WindowCoarsening(SMALL, stage=2))
    with pytest.raises(ValueError, match=r"Expected WindowCoarsening alone \(got a schedule"):
        tg.attach(sam(), KINDS["tome"], 4)
    with pytest.raises(ValueError, match=r"one size of windows \(got global attention alone\)"):
        tg.attach(sam(window_size=0), KINDS["tome"])


def test_a_block_by_itself_says_that_it_needs_its_model(sam):
    model = sam()
    tg.attach(model, KINDS["expedite"])
    with pytest.raises(RuntimeError, match="Expected block 3 to run as part of its model"):
        model.blocks[3](torch.randn(1, 10, 10, 24))
