"""Masks that bar whole patches, as padding masks do, under strategies."""

import pytest
import torch
from needs import library
from torch import nn

import tokengraph as tg
from tokengraph.attach.mask import bars_patches
from tokengraph.testing import tiny_vit

library("timm")

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
PADDING = torch.ones(2, 1, 1, 17, dtype=torch.bool)
PADDING[1, ..., 13:] = False
REFUSED = "Expected an attn_mask that hides no patch"
MIXING = {
    "tome": ("tome", 3),
    "dpc-knn": ("dpc-knn", {1: 0.5}),
    "grid-pool": ("grid-pool", {1: 0.5}),
    "ailurus": ("ailurus", {1: 0.5}),
    "gtp": ("gtp", 3),
    "gtp without scales": (tg.GTP(scales=False), 3),
    "expedite": (tg.Expedite(clusters=(2, 2)), {1: "cluster", 2: "reconstruct"}),
    "fuse": (tg.TopK(fuse=True), 3),
    "migration": ("token-migration", None),
    "dynamicvit": (tg.DynamicViT(0.5), None),
}


@pytest.mark.parametrize("dtype", ["bool", "inf", "min"])
@pytest.mark.parametrize("setting", MIXING.values(), ids=MIXING)
def test_strategies_that_mix_tokens_refuse_a_padding_mask(setting, dtype):
    model, mask = tiny_vit(depth=4), PADDING
    if dtype != "bool":
        lowest = -torch.inf if dtype == "inf" else torch.finfo(torch.float32).min
        mask = torch.zeros(PADDING.shape).masked_fill(~PADDING, lowest)
    with tg.attach(model, *setting), torch.no_grad():
        with pytest.raises(ValueError, match=REFUSED):
            model.forward_features(IMAGES, attn_mask=mask)
        model.forward_features(IMAGES)  # and goes on without it


@pytest.mark.parametrize("select", ["topk", "random"])
def test_pruning_keeps_padding_from_the_class_token(select):
    model = tiny_vit()
    others = IMAGES.clone()
    others[1, :, 24:] = 5.0  # the last row of patches, which is barred
    with tg.attach(model, select, 3), torch.no_grad():
        one, other = (model.forward_features(x, attn_mask=PADDING)[:, 0] for x in (IMAGES, others))
        assert torch.equal(one, other)
        assert not torch.equal(one, model.forward_features(others)[:, 0])


def test_masks_that_leave_each_patch_to_some_query_are_carried_along():
    model = tiny_vit()
    window = (torch.arange(17)[:, None] - torch.arange(17)).abs() < 6
    window[0] = window[:, 0] = True
    prefix = torch.ones(1, 1, 1, 17, dtype=torch.bool)
    prefix[..., 0] = False  # the class token is in no cluster
    bias = torch.randn(2, 4, 17, 17)
    with tg.attach(model, "tome", 3), torch.no_grad():
        for mask in (window, prefix, bias, torch.zeros(1, 17)):
            assert model.forward_features(IMAGES, attn_mask=mask).isfinite().all()


def test_a_compiled_run_refuses_a_padding_mask_too():
    torch.compiler.reset()
    model = tiny_vit()
    with tg.attach(model, "tome", 3), torch.no_grad():
        run = torch.compile(lambda x, m: model.forward_features(x, attn_mask=m), fullgraph=True, backend="eager")
        fine = torch.ones_like(PADDING)
        torch.testing.assert_close(run(IMAGES, fine), model.forward_features(IMAGES, attn_mask=fine))
        with pytest.raises(RuntimeError, match=REFUSED):
            run(IMAGES, PADDING)


def test_every_run_is_looked_at_again():
    model, mask = tiny_vit(), torch.ones_like(PADDING)
    with tg.attach(model, "tome", 3), torch.no_grad():
        model.forward_features(IMAGES, attn_mask=mask)
        mask[..., 13:] = False  # the same tensor
        with pytest.raises(ValueError, match=REFUSED):
            model.forward_features(IMAGES, attn_mask=mask)


def test_key_padding_of_encoder_layers():
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval()
    where = tg.adapters.EncoderLayers("layers", num_prefix=1, grid=(4, 4))
    x, padding = torch.randn(2, 17, 32), ~PADDING[:, 0, 0]
    with torch.no_grad():
        with tg.attach(encoder, "tome", 3, adapter=where), pytest.raises(ValueError, match=REFUSED):
            encoder(x, src_key_padding_mask=padding)
        with tg.attach(encoder, tg.Random(), 3, adapter=where):
            assert encoder(x, src_key_padding_mask=padding).shape == (2, 8, 32)


def test_attention_mask_of_transformers():
    transformers = library("transformers")
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8
    )
    model = transformers.ViTModel(config).eval()
    mask = PADDING[:, 0, 0].long()
    with torch.no_grad():
        if torch.equal(model(IMAGES, attention_mask=mask)[0], model(IMAGES)[0]):
            pytest.skip("ViTModel of this release of transformers takes no attention_mask")
    with tg.attach(model, "tome", 3), torch.no_grad(), pytest.raises(ValueError, match=REFUSED):
        model(IMAGES, attention_mask=mask)


@pytest.mark.parametrize("shape", [(2, 17), (2, 1, 5, 17), (3, 1, 1, 17), (2, 2, 1, 1, 17), (17,), (2, 1, 1, 16)])
def test_masks_of_another_shape_are_refused_before_anything_is_computed(shape):
    model, ran = tiny_vit(), []
    with tg.attach(model, "tome", 3):
        model.blocks[0].attn.register_forward_hook(lambda *_: ran.append(1))
        with pytest.raises(ValueError, match=r"Expected attn_mask of shape"):
            model.forward_features(IMAGES, attn_mask=torch.zeros(shape))
        assert not ran


def test_bars_patches_looks_at_patches_of_each_image():
    mask = torch.zeros(2, 3, 4, 5)
    mask[1, :, :, 2] = -torch.inf
    assert bars_patches(mask, 1) and not bars_patches(mask, 3)
    mask[1, 2, 0, 2] = 0.0
    assert not bars_patches(mask, 1)
    assert bars_patches(torch.tensor([[True, True, False]]), 1) and not bars_patches(torch.ones(4, 4).bool(), 1)
