"""timm's BEiT under a strategy: the bias after pruning, maps, other sizes, refusals.

Tests shared with transformers' BEiT are in ``test_beit_kinds.py``.
"""

import copy

import pytest
import torch
from beit_cases import make, run
from needs import library
from torch.testing import assert_close

import tokengraph as tg

library("timm")


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["timm_own", "timm_both"])
def test_pruned_tokens_keep_their_rows_and_columns_of_the_bias(kind, images):
    model = make(kind)
    with tg.attach(model, tg.TopK(score="norm"), {1: 7}) as handle, torch.no_grad():
        out = model.forward_features(images)
        patch = handle.trace.lineage(1).ancestor
    with torch.no_grad():  # by hand, one image at a time, in blocks made for these tokens
        x = torch.cat([model.cls_token.expand(2, -1, -1), model.patch_embed(images)], dim=1)
        x = x if model.pos_embed is None else x + model.pos_embed
        shared = None if model.rel_pos_bias is None else model.rel_pos_bias()
        x = model.blocks[0](x, shared_rel_pos_bias=shared)
        for b in range(2):
            own = torch.cat([torch.zeros(1, dtype=torch.long), patch[b] + 1])
            y = x[b, own][None]
            for block in copy.deepcopy(model.blocks[1:]):
                block.attn.window_size = (1, 7)
                block.attn.relative_position_index = block.attn.relative_position_index[own][:, own]
                y = block(y, shared_rel_pos_bias=None if shared is None else shared[:, own][:, :, own])
            assert_close(out[b], model.norm(y)[0], rtol=1e-4, atol=1e-5)


def test_heads_that_average_patches_see_each_with_its_clusters_features(images):
    model = make("timm_own")
    with tg.attach(model, "tome", 3) as handle, torch.no_grad():
        out = run(model, images)[0]
        mean = handle.trace.lift(handle.trace.output).mean(dim=1)
        assert_close(out, model.head(model.fc_norm(mean)))
        before = handle.trace.output.mean(dim=1)
        assert not torch.allclose(mean, before[:, : mean.size(1)], rtol=1e-2)


def test_feature_maps_are_whole(images):
    model = make("timm_own")
    with tg.attach(model, "tome", 3), torch.no_grad():
        assert {m.shape for m in model.forward_intermediates(images, intermediates_only=True)} == {(2, 32, 4, 4)}


def test_a_model_of_timm_that_was_resized_is_served(images):
    model = make("timm_both")
    if not hasattr(model, "set_input_size"):
        pytest.skip("this timm cannot resize BEiT")
    model.set_input_size((48, 32))
    with tg.attach(model, "tome", 3) as handle:
        assert run(model, torch.randn(1, 3, 48, 32))[0].isfinite().all() and handle.trace.counts == [24, 21, 18, 15]


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "beitv2_large_patch16_224"])
def test_models_of_timm_are_served_by_name(name, weightless):
    model = weightless(name)
    with tg.attach(model, "tome", 8) as handle:
        assert handle.trace.counts[:2] == [196, 188]


def test_blocks_of_another_class_are_refused_by_name():
    model = make("timm_own")
    model.blocks[1] = torch.nn.Identity()
    with pytest.raises(ValueError, match="blocks of BEiT's class Block .got Identity at 1"):
        tg.attach(model, "tome", 3)
