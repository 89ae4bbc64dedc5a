"""Strategies that act a step ahead of a block, by that block's own map."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

import tokengraph as tg
from tokengraph.attach.ahead import pooled_map
from tokengraph.flat.layout import Layout
from tokengraph.testing import tiny_vit


def dense_map(attention, cluster, weight, prefix, count):
    """The pooled map of one image by matrices."""
    whole = torch.cat([torch.arange(prefix), cluster + prefix])
    s = torch.nn.functional.one_hot(whole, prefix + count).float()
    rows = s * torch.cat([torch.ones(prefix), weight])[:, None]
    return (rows / rows.sum(dim=0)).T @ attention @ s


@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_the_pooled_map_is_the_product_of_matrices(prefix):
    attention = torch.randn(2, 3, prefix + 12, prefix + 12).softmax(dim=3)
    a = tg.mctf(torch.randn(2, 12, 4), weight := torch.rand(2, 12), 7, num_prefix=prefix)
    out = pooled_map(attention, a, Layout(2, 12), Layout(2, 7), prefix)
    local = a.cluster.view(2, 12) - torch.tensor([[0], [7]])
    for b in range(2):
        assert_close(out[b], dense_map(attention[b], local[b], weight[b], prefix, 7))
    assert_close(out.sum(dim=3), torch.ones(2, 3, prefix + 7))


def test_without_merges_the_pooled_map_is_the_map():
    attention = torch.randn(1, 2, 7, 7).softmax(dim=3)
    a = tg.Assignment.from_dense(torch.arange(6)[None], 6, weight=torch.rand(1, 6))
    assert torch.equal(pooled_map(attention, a, Layout(1, 6), Layout(1, 6), 1), attention)


def test_padding_pools_to_zeros_and_images_as_alone():
    counts, keep = (12, 7), (6, 5)
    before, after = Layout.of(2, 19, counts, torch.device("cpu")), Layout.of(2, 11, keep, torch.device("cpu"))
    attention = torch.rand(2, 3, 13, 13)
    received = torch.rand(2, 12)
    a = tg.mctf(torch.randn(2, 12, 4), received, list(keep), mask=before.valid, num_prefix=1)
    out = pooled_map(attention, a, before, after, 1)
    for b, (n, k) in enumerate(zip(counts, keep, strict=True)):
        local = a.cluster[a.ptr[b] : a.ptr[b + 1]] - a.cluster_ptr[b]
        expected = dense_map(attention[b, :, : n + 1, : n + 1], local, received[b, :n], 1, k)
        assert_close(out[b, :, : k + 1, : k + 1], expected)
        assert not out[b, :, k + 1 :].any() and not out[b, :, :, k + 1 :].any()


def test_ahead_and_precise_agree_where_clusters_hold_duplicates():
    """Keys of duplicates weigh by their number in the new map, and add up in the pooled one."""
    images = torch.randn(2, 3, 8, 1).expand(-1, -1, -1, 4).reshape(2, 3, 8, 4)
    outputs = []
    for ahead in (True, "precise"):
        torch.manual_seed(1)
        model = tiny_vit(img_size=(8, 4), patch_size=2, depth=2)
        torch.nn.init.zeros_(model.pos_embed)
        with torch.no_grad(), tg.attach(model, tg.MCTF((1, 0, 0), ahead=ahead), {1: 4}) as handle:
            outputs.append(model(images))
            assert handle.trace.counts == [8, 8, 4]
    assert_close(*outputs)


def test_the_tokens_are_fewer_from_behind_the_block_on():
    model, seen = tiny_vit(), []
    with torch.no_grad(), tg.attach(model, tg.MCTF(ahead=True), {0: 12, 2: 6}) as handle:
        for block in model.blocks:
            block.mlp.register_forward_pre_hook(lambda m, args: seen.append(args[0].size(1) - 1))
        model(torch.randn(2, 3, 32, 32))
        assert handle.trace.counts == [16, 12, 12, 6] and seen == [12, 12, 6]


@pytest.mark.parametrize("schedule", [3, {0: 12, 2: 6}, {0: 12, 1: 6, 3: "reconstruct"}, [3, 0, 9]])
def test_counts_before_a_run_are_those_of_a_run(schedule):
    model = tiny_vit()
    with torch.no_grad(), tg.attach(model, tg.MCTF(ahead=True), schedule) as handle:
        planned = handle.trace.counts
        model(torch.randn(2, 3, 32, 32))
        assert handle.trace.counts == planned and planned[0] == 16


def test_nothing_leaves_behind_the_last_block():
    with pytest.raises(ValueError, match=r"Expected nothing to leave behind the last block .*got 16 tokens, then 8"):
        tg.attach(tiny_vit(), tg.MCTF(ahead=True), {3: 8})


@pytest.mark.parametrize("ahead", [True, "precise"])
def test_gradients_pass_and_checkpointing_gives_the_same(ahead):
    images, grads = torch.randn(2, 3, 32, 32), []
    for checkpoint in (False, True):
        torch.manual_seed(2)
        model = tiny_vit()
        model.set_grad_checkpointing(checkpoint)
        with tg.attach(model, tg.MCTF(ahead=ahead), 3):
            model(images).square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    assert all(g is not None and g.isfinite().all() for g in grads[0])
    for one, other in zip(*grads, strict=True):
        assert_close(one, other)


def test_other_values_are_refused():
    with pytest.raises(ValueError, match="Expected ahead to be False, True or 'precise' .got 'exact'"):
        tg.MCTF(ahead="exact")
    assert replace(tg.MCTF(), ahead=True).placement == "ahead" and tg.MCTF().placement == "after"
    assert tg.MCTF(ahead=True).pools_map and not tg.MCTF(ahead="precise").pools_map
