"""timm's BEiT under a strategy: the relative position bias of tokens that were merged or dropped, maps, training."""

import copy

import pytest
import torch
from beit_cases import STRATEGIES, TIMM, First, OpenFirst, Uneven, make, run
from torch.testing import assert_close

import tokengraph as tg

try:
    from tokengraph.compat import timm  # noqa: F401
except ImportError as error:
    pytest.skip(str(error), allow_module_level=True)


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", TIMM)
def test_every_strategy_runs_and_treats_images_alone(kind, strategy, images):
    model = make(kind)
    with tg.attach(model, *STRATEGIES[strategy]) as handle:
        together = run(model, images)[0]
        assert together.isfinite().all() and min(handle.trace.counts) < 16
        alone = torch.cat([run(model, image[None])[0] for image in images])
        assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", TIMM)
def test_statistics_are_those_of_the_map_that_weighs_the_values(kind, images):
    seen = []
    for select in (First(), OpenFirst()):
        with tg.attach(make(kind), select, {1: 12, 2: 8}) as handle:
            run(handle.model, images)
        seen.append([t for step in select.seen for t in step])
    for ours, theirs in zip(*seen, strict=True):
        assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["timm_own", "timm_both"])
def test_pruned_tokens_keep_their_rows_and_columns_of_the_bias(kind, images):
    model = make(kind)
    with tg.attach(model, tg.TopK(score="norm"), {1: 7}) as handle, torch.no_grad():
        out = model.forward_features(images)
        patch = handle.trace.state(1).patch
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


@pytest.mark.parametrize("kind", ["timm_own"])
def test_heads_that_average_patches_see_each_with_its_clusters_features(kind, images):
    model = make(kind)
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


@pytest.mark.parametrize("strategy", ["tome", "topk-class", "expedite"])
@pytest.mark.parametrize("kind", ["timm_both"])
def test_tables_of_the_bias_get_their_gradients_under_checkpointing(kind, strategy, images):
    grads = []
    for checkpointed in (False, True):
        model = make(kind, drop_path_rate=0.0).train()
        if checkpointed:
            model.set_grad_checkpointing()
        with tg.attach(model, *STRATEGIES[strategy]):
            model(images).square().mean().backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    tables = [grad for name, grad in grads[0].items() if "relative_position_bias_table" in name]
    assert len(tables) == 4 and all(grad.abs().sum() > 0 for grad in tables)
    assert grads[0].keys() == grads[1].keys()
    for name, plain in grads[0].items():
        assert_close(plain, grads[1][name])


@pytest.mark.parametrize("kind", ["timm_both"])
def test_is_exported_with_the_eager_result(kind, images):
    model = make(kind)
    for strategy in ("tome", "topk-class"):
        with tg.attach(model, *STRATEGIES[strategy]), torch.no_grad():
            program = torch.export.export(model, (images,))
            assert_close(program.module()(images), model(images))


@pytest.mark.parametrize("kind", ["timm_both"])
def test_autocast_and_half_precision_stay_near(kind, images):
    model = make(kind)
    with tg.attach(model, *STRATEGIES["grid-pool"]):
        wanted = run(model, images)[0]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert_close(run(model, images)[0].float(), wanted, rtol=0.1, atol=0.1)
        assert_close(run(model.bfloat16(), images.bfloat16())[0].float(), wanted, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("kind", ["timm_both"])
def test_learned_pruning_trains_beside_the_bias(kind, images):
    model = make(kind).train()
    handle = tg.attach(model, tg.DynamicViT(0.5, layers=[1, 2]))
    (model(images).square().mean() + handle.trace.decisions[-1].mean()).backward()
    named = dict(model.named_parameters())
    learned = [p for n, p in named.items() if "score_predictor" in n or "relative_position_bias_table" in n]
    assert len(learned) > 4 and all(p.grad is not None and p.grad.isfinite().all() for p in learned)
    handle.remove()


@pytest.mark.parametrize("kind", ["timm_own"])
def test_folding_the_size_bias_gives_what_the_mask_gives(kind, images):
    model = make(kind)
    with tg.attach(model, "tome", 3):
        masked = run(model, images)[0]
    with tg.attach(model, "tome", 3, size_bias="fold"):
        assert_close(run(model, images)[0], masked, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("inner", [tg.ToMe(), tg.TopK(score="norm"), tg.TopK(score="norm", fuse=True)], ids=repr)
@pytest.mark.parametrize("kind", ["timm_both"])
def test_images_with_different_numbers_of_tokens_are_what_they_are_alone(kind, inner):
    images = torch.randn(4, 3, 32, 32) * torch.tensor([0.1, 1.0, 3.0, 10.0]).view(4, 1, 1, 1)
    model = make(kind)
    with tg.attach(model, Uneven(inner), [4, 3, 2]) as handle:
        together = run(model, images)[0]
        counts = [handle.trace.counts_per_image(layer) for layer in range(4)]
        assert any(len(set(c)) > 1 for c in counts)
        for b, image in enumerate(images):
            alone = run(model, image[None])[0][0]
            mine = together[b] if alone.dim() == 1 else together[b, : len(alone)]
            assert_close(mine, alone, rtol=1e-4, atol=1e-5)


def test_a_graph_is_made_from_a_model(images):
    for kind in ("timm_own", "timm_both"):
        graph = tg.TokenGraph.from_model(make(kind), images, layer=1)
        assert graph.num_nodes == 32 and graph.grid == (4, 4) and graph.x.shape == (32, 32)


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
