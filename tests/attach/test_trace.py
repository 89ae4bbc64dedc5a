"""The record of a run."""

import pytest
import torch
from needs import library

import tokengraph as tg
from tokengraph.testing import tiny_vit

library("timm")

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_trace_before_a_run_knows_the_plan_only():
    with tg.attach(tiny_vit(), "tome", 3) as coarse:
        assert coarse.trace.counts == [16, 13, 10, 7]
        with pytest.raises(RuntimeError, match="Expected a run of the model"):
            coarse.trace.lift(torch.randn(2, 7, 32))


def test_handle_and_trace_show_themselves_in_a_line():
    model = tiny_vit()
    with tg.attach(model, "tome", 3) as coarse:
        assert repr(coarse) == "Attachment(CoarseVisionTransformer, ToMe(order='published'))"
        assert repr(coarse.trace) == "Trace(plan=[16, 13, 10, 7])"
        model(IMAGES)
        assert repr(coarse.trace) == f"Trace(counts={coarse.trace.counts})"
        hook = model.blocks[1].register_forward_pre_hook(lambda module, args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(IMAGES)
        hook.remove()
        assert repr(coarse.trace) == "Trace(plan=[16, 13, 10, 7], stopped=True)"


@pytest.mark.parametrize("layer", ["2", 1.5, True])
def test_a_layer_of_another_kind_is_refused(layer):
    model = tiny_vit()
    with tg.attach(model, "tome", 3) as coarse:
        tokens = model.forward_features(IMAGES)
        with pytest.raises(TypeError, match="Expected a layer as an int, the number of finished blocks"):
            coarse.trace.as_map(tokens, layer=layer)


def test_source_composes_the_coarsenings_of_all_layers():
    model = tiny_vit()
    with tg.attach(model, "dpc-knn", {1: 10, 3: 4}) as coarse:
        model(IMAGES)
        whole, first = coarse.trace.source(), coarse.trace.source(2)
    assert (whole.num_tokens, whole.num_clusters, first.num_clusters) == (32, 8, 20)
    for cluster in range(20):  # tokens that shared a cluster early still do
        members = whole.cluster[first.cluster == cluster]
        assert members.unique().numel() == 1
    assert coarse.trace.source(0).cluster.tolist() == list(range(32))


def test_lift_gives_each_patch_the_row_of_its_cluster():
    model = tiny_vit()
    with tg.attach(model, "tome", 5) as coarse:
        tokens = model.forward_features(IMAGES)
        lifted = coarse.trace.lift(tokens)
        cluster = coarse.trace.source().cluster
    rows = tokens[:, 1:].flatten(0, 1)
    assert torch.equal(lifted.flatten(0, 1), rows[cluster])


def test_lift_takes_tokens_with_or_without_prefix_and_refuses_others():
    with tg.attach(tiny_vit(), "tome", 5) as coarse:
        tokens = coarse.model.forward_features(IMAGES)
        assert torch.equal(coarse.trace.lift(tokens), coarse.trace.lift(tokens[:, 1:]))
        with pytest.raises(ValueError, match="Expected 3 tokens an image, or 4 with prefix tokens .got 9"):
            coarse.trace.lift(torch.randn(2, 9, 32))
        with pytest.raises(ValueError, match=r"Expected tokens of shape \[B=2, n, C\]"):
            coarse.trace.lift(tokens[:1])
        with pytest.raises(ValueError, match=r"Expected a layer in \[0, 3\]"):
            coarse.trace.state(4)


def test_lift_fills_dropped_patches_with_zeros_or_a_table():
    with tg.attach(tiny_vit(), tg.TopK(score="norm"), {2: 6}) as coarse:
        tokens = coarse.model.forward_features(IMAGES)[:, 1:]
        plain = coarse.trace.lift(tokens)
        table = torch.full((2, 16, 32), 7.0)
        filled = coarse.trace.lift(tokens, fill=table)
        dropped = (coarse.trace.source().cluster == 12).view(2, 16)
    assert dropped.sum(dim=1).tolist() == [10, 10]
    assert (plain[dropped] == 0).all() and (filled[dropped] == 7).all()
    assert torch.equal(plain[~dropped], filled[~dropped])


def test_lift_lets_gradients_through():
    model = tiny_vit()
    with tg.attach(model, "dpc-knn", {1: 6}) as coarse:
        coarse.trace.lift(model.forward_features(IMAGES)).square().sum().backward()
    assert model.patch_embed.proj.weight.grad.abs().sum() > 0


def test_as_map_lays_rows_out_by_the_grid():
    model = tiny_vit(img_size=(32, 48))
    with tg.attach(model, "grid-pool", {3: 6}) as coarse:
        model(torch.randn(1, 3, 32, 48))
        image = coarse.trace.as_map()
    assert image.shape == (1, 32, 4, 6)
    for y in range(0, 4, 2):
        for x in range(0, 6, 2):
            cell = image[0, :, y : y + 2, x : x + 2].flatten(1)
            assert torch.equal(cell, cell[:, :1].expand(-1, 4))


def test_positions_are_centroids_of_the_patches_a_token_stands_for():
    class Spy(tg.DPCKNN):
        name = ""

        def __call__(self, tokens, budget):
            seen.append((tokens.pos, tokens.size, tokens.full))
            return super().__call__(tokens, budget)

    seen = []
    model = tiny_vit()
    with tg.attach(model, Spy(), {1: 8, 2: 4}) as coarse:
        model(IMAGES)
        source = coarse.trace.source(1)
    (first, none, full), (second, size, coarse_full) = seen
    assert first[0, 0].tolist() == [0.5, 0.5] and first[1, 5].tolist() == [1.5, 1.5]
    assert none is None and full and not coarse_full
    assert size.sum(dim=1).tolist() == [16.0, 16.0]
    members = first.flatten(0, 1)[source.cluster == 9]
    torch.testing.assert_close(second.flatten(0, 1)[9], members.mean(dim=0))


def test_a_run_that_failed_does_not_pass_for_one_that_ended():
    with tg.attach(tiny_vit(), "tome", 3) as coarse, torch.no_grad():
        coarse.model(IMAGES)
        hook = coarse.model.blocks[1].mlp.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            coarse.model(IMAGES[:1])
        hook.remove()
        for read in (lambda: coarse.trace.counts, coarse.trace.as_map, coarse.trace.source):
            with pytest.raises(RuntimeError, match="up to layer 3 .* .got one that ended after layer 1"):
                read()
        assert coarse.trace.output is None
        assert coarse.trace.counts_per_image(1) == [13] and coarse.trace.source(1).num_clusters == 13
        coarse.model(IMAGES)
        assert coarse.trace.counts == [16, 13, 10, 7]


@pytest.mark.parametrize("schedule", [3, {3: 8}])
def test_a_run_that_stopped_early_does_not_pass_for_one_that_ended(schedule):
    """Also where it stopped before the first block that coarsens anything."""
    with tg.attach(tiny_vit(), "tome", schedule) as coarse, torch.no_grad():
        coarse.model(IMAGES)
        maps = coarse.model.forward_intermediates(IMAGES[:1], indices=[0], stop_early=True, intermediates_only=True)
        assert maps[0].shape == (1, 32, 4, 4) and coarse.trace.output is None
        with pytest.raises(RuntimeError, match="Expected a run of the model up to layer 3"):
            _ = coarse.trace.counts


def test_a_run_whose_images_are_refused_leaves_nothing_of_the_one_before():
    with tg.attach(tiny_vit(), "tome", 3) as coarse, torch.no_grad():
        coarse.model(IMAGES)
        with pytest.raises(AssertionError):
            coarse.model(IMAGES[..., :24])
        with pytest.raises(RuntimeError, match="Expected a run of the model"):
            _ = coarse.trace.counts


def test_more_tokens_than_the_grid_has_are_refused():
    layer = torch.nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True)
    model = torch.nn.Sequential(torch.nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)).eval()
    where = tg.adapters.EncoderLayers("0", num_prefix=1, grid=(4, 4))
    with tg.attach(model, "tome", 4, adapter=where), torch.no_grad():
        with pytest.raises(ValueError, match="Expected at most 4 x 4 patch tokens an image after 1 prefix .*got 39"):
            model(torch.randn(2, 40, 32))
        assert model(torch.randn(2, 17, 32)).shape == (2, 5, 32)
        assert model(torch.randn(2, 13, 32)).size(1) < 13  # fewer: some patches were left out


@pytest.mark.parametrize(("prop_attn", "power"), [(True, 1.0), ("half-log", 0.5), (False, 0.0)])
def test_trace_tells_who_recomputes_attention_what_the_model_adds_and_brings_it_back_to_patches(prop_attn, power):
    model, seen = tiny_vit(), {}
    with torch.no_grad(), tg.attach(model, "tome", 4, prop_attn=prop_attn) as handle:
        attn = model.blocks[2].attn
        attn.qkv.register_forward_hook(lambda module, args, out: seen.update(qkv=out))
        attn.register_forward_hook(lambda module, args, out: seen.update(out=out))
        model(torch.randn(2, 3, 32, 32))
        size = handle.trace.size(2)
        assert size.shape == (2, 8) and size.sum(dim=1).tolist() == [16, 16]
        q, k, v = seen["qkv"].unflatten(2, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        bias = power * torch.nn.functional.pad(size.log(), (1, 0))
        attention = (q @ k.transpose(2, 3) * 8**-0.5 + bias[:, None, None]).softmax(dim=3)
        torch.testing.assert_close(attn.proj((attention @ v).transpose(1, 2).flatten(2)), seen["out"])
        row = attention[:, :, 0, 1:] / size[:, None]
        maps = handle.trace.as_map(row.transpose(1, 2), layer=2)
    assert maps.shape == (2, 4, 4, 4)
    # Each patch has its share of the cluster's attention: together with the class token's own they are 1.
    torch.testing.assert_close(maps.sum(dim=(2, 3)) + attention[:, :, 0, 0], torch.ones(2, 4))
