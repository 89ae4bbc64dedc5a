"""Token Transforming by its properties."""

import pytest
import torch
from torch.testing import assert_close

import tokengraph as tg
from tokengraph import token_transforming
from tokengraph.testing import make_tokens, tiny_vit


def test_mass_is_kept_and_constants_stay():
    x = torch.randn(2, 20, 8)
    size = torch.rand(40) + 0.5
    soft = token_transforming(x, torch.rand(2, 20), 7)
    rows, sizes = soft.reduce(torch.full((40, 3), 0.7), size)
    assert_close(sizes.view(2, 7).sum(dim=1), size.view(2, 20).sum(dim=1))
    assert_close(rows, torch.full((14, 3), 0.7))
    assert_close(soft.lift(rows), torch.full((40, 3), 0.7))
    assert (sizes > 0).all() and not soft.lossy


def test_the_most_important_stay_in_their_order():
    soft = token_transforming(torch.randn(1, 5, 3), torch.tensor([[0.1, 0.9, 0.5, 0.9, 0.2]]), 3)
    assert soft.centers.tolist() == [1, 2, 3]


def test_a_large_scale_takes_the_nearest_alone():
    x = torch.randn(2, 20, 8)
    soft = token_transforming(x, torch.rand(2, 20), 7, scale=1e6)
    weight = soft.weight.view(2, 20, 7)
    assert_close(weight.amax(dim=2), torch.ones(2, 20))
    unit = torch.nn.functional.normalize(x, dim=2)
    near = torch.stack([(unit[b] @ unit[b][soft.centers.view(2, 7)[b] - 20 * b].T).argmax(1) for b in range(2)])
    assert torch.equal(weight.argmax(dim=2), near)


def test_of_the_largest_weights_k_edges_a_token_are_left_and_sum_to_one():
    x, importance = torch.randn(2, 20, 8), torch.rand(2, 20)
    whole = token_transforming(x, importance, 7).weight.view(2, 20, 7)
    soft = token_transforming(x, importance, 7, topk=3)
    assert soft.weight.numel() == 2 * 20 * 3
    assert_close(soft.weight.view(2, 20, 3).sum(dim=2), torch.ones(2, 20))
    dense = torch.zeros(40, 14).index_put((soft.token, soft.cluster), soft.weight)
    best = whole.topk(3, dim=2)
    for b in range(2):
        own = dense[20 * b : 20 * b + 20, 7 * b : 7 * b + 7]
        expected = torch.zeros(20, 7).scatter(1, best.indices[b], best.values[b])
        assert_close(own, expected / expected.sum(dim=1, keepdim=True))


def test_destinations_may_stay_with_themselves():
    x, importance = torch.randn(2, 20, 8), torch.rand(2, 20)
    soft = token_transforming(x, importance, 7, keep_self=True)
    weight = soft.weight.view(2, 20, 7)
    local = soft.centers.view(2, 7) - torch.tensor([[0], [20]])
    assert torch.equal(weight.gather(1, local[..., None].expand(-1, -1, 7)), torch.eye(7).expand(2, -1, -1))
    mixed = token_transforming(x, importance, 7).weight.view(2, 20, 7).gather(1, local[..., None].expand(-1, -1, 7))
    assert (mixed.amax(dim=2) < 1).all()


@pytest.mark.parametrize("topk", [None, 2])
def test_with_a_mask_equals_each_image_alone(topk):
    x, importance = torch.randn(5, 20, 8), torch.rand(5, 20)
    counts, keep = [20, 13, 0, 6, 1], [7, 4, 1, 6, 1]
    mask = torch.arange(20) < torch.tensor(counts)[:, None]
    mask[1] = mask[1].roll(4)
    x[~mask], importance[~mask] = torch.nan, torch.nan
    whole = token_transforming(x, importance, keep, topk=topk, mask=mask)
    rows = torch.randn(40, 3)
    made, sizes = whole.reduce(rows)
    lifted = whole.lift(made)
    for b, k in enumerate(keep):
        alone = token_transforming(x[b : b + 1, mask[b]], importance[b : b + 1, mask[b]], k, topk=topk)
        tokens = slice(int(whole.ptr[b]), int(whole.ptr[b + 1]))
        clusters = slice(int(whole.cluster_ptr[b]), int(whole.cluster_ptr[b + 1]))
        theirs, their_sizes = alone.reduce(rows[tokens])
        assert_close(made[clusters], theirs)
        assert_close(sizes[clusters], their_sizes)
        assert_close(lifted[tokens], alone.lift(theirs))
    assert torch.equal(lifted[-7:], rows[-7:])  # images that keep all


def test_gradients_reach_keys_and_are_finite_for_zero_rows():
    x = torch.randn(1, 8, 4)
    x[:, ::2] = 0
    x.requires_grad_()
    soft = token_transforming(x, torch.rand(1, 8), 3)
    soft.reduce(torch.randn(8, 2))[0].square().sum().backward()
    assert x.grad.isfinite().all() and x.grad.any() and x.grad.abs().max() < 1e3


def test_models_without_a_class_token_take_what_tokens_receive():
    images = torch.randn(2, 3, 32, 32)
    bare = tiny_vit(class_token=False, global_pool="avg")
    outputs = []
    for importance in ("class", "received"):
        with torch.no_grad(), tg.attach(bare, tg.TokenTransforming(importance=importance), {1: 8}):
            outputs.append(bare(images))
    assert torch.equal(*outputs)


def test_reconstruction_restores_every_patch():
    model, images = tiny_vit(), torch.randn(2, 3, 32, 32)
    with torch.no_grad(), tg.attach(model, tg.TokenTransforming(), {1: 8, 2: "reconstruct"}) as handle:
        model(images)
        assert handle.trace.counts == [16, 8, 16, 16]


def test_wrong_options_are_refused():
    x = torch.randn(1, 4, 2)
    with pytest.raises(ValueError, match="Expected a finite scale >= 0 .got -1"):
        tg.TokenTransforming(scale=-1)
    with pytest.raises(ValueError, match="Expected topk >= 1"):
        token_transforming(x, torch.rand(1, 4), 2, topk=0)
    with pytest.raises(ValueError, match="Expected importance to be one of class, received, norm .got 'cls'"):
        tg.TokenTransforming(importance="cls")
    with pytest.raises(ValueError, match=r"Expected importance of shape \[B, N\] = \[1, 4\] \(got \[4\]\)"):
        token_transforming(x, torch.rand(4), 2)
    tokens = make_tokens(x, (2, 2))
    tokens.attention = None
    with pytest.raises(ValueError, match=r"Expected tokens with attention .* Use importance='norm'"):
        tg.TokenTransforming()(tokens, 2)
