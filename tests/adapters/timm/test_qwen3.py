"""timm's ``qwen3_vit_*``: rotary EvaBlocks whose output is laid out on the grid."""

import pytest
import torch
from torch.testing import assert_close

pytest.importorskip("timm.models.qwen3_vit")

from timm.models import qwen3_vit as qwen3

import tokengraph as tg

SIZES = dict(img_size=64, patch_size=8, embed_dim=32, depth=3, num_heads=2, pos_embed_grid_size=6)
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    with torch.no_grad():
        yield qwen3.Qwen3VitEncoder(out_features=24, **SIZES).eval()


def test_the_projector_gets_every_patch(encoder):
    plain = encoder(IMAGES)
    with tg.attach(encoder, "tome", 0):
        assert torch.equal(encoder(IMAGES), plain)
    with tg.attach(encoder, "tome", {1: 0.5}) as handle:
        assert encoder(IMAGES).shape == plain.shape == (2, 16, 24)
        assert handle.trace.counts == [64, 32, 32, 32]
        whole = encoder.forward_features(IMAGES)
        tokens = handle.trace.lineage().now.width
        assert whole.shape == (2, 8, 8, 32) and len(whole[0].flatten(0, 1).unique(dim=0)) == tokens == 32
    assert torch.equal(encoder(IMAGES), plain)


@pytest.mark.parametrize("stop_early", [False, True])
@pytest.mark.parametrize("output_fmt", ["NCHW", "NLC"])
def test_intermediates_are_full_maps(encoder, stop_early, output_fmt):
    asked = dict(indices=[0, 1], stop_early=stop_early, output_fmt=output_fmt)
    features, plain = encoder.forward_intermediates(IMAGES, **asked)
    with tg.attach(encoder, "tome", {2: 0.5}):
        last, maps = encoder.forward_intermediates(IMAGES, **asked)
        alone = encoder.forward_intermediates(IMAGES, **asked, intermediates_only=True)
    assert [m.shape for m in maps] == [m.shape for m in plain] and last.shape == (2, 8, 8, 32)
    assert_close(maps[0], plain[0])  # before any token is merged
    assert all(torch.equal(a, b) for a, b in zip(maps, alone, strict=True))


def test_the_classifier_is_served_and_compiles():
    torch.manual_seed(0)
    model = qwen3.Qwen3VitClassifier(num_classes=5, encoder_pool="merge", **SIZES).eval()
    with torch.no_grad(), tg.attach(model, "dpc-knn", {1: 0.25}) as handle:
        eager = model(IMAGES)
        assert handle.trace.counts[-1] == 16
        assert_close(torch.compile(model, backend="eager", fullgraph=True)(IMAGES), eager)


def test_tokens_that_a_strategy_stores_come_back_into_the_grid(encoder):
    with tg.attach(encoder, "token-migration", {1: 0.5}):
        assert encoder(IMAGES).isfinite().all()
