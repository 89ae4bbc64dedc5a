"""Pruning by score, and the fused token of EViT."""

import pytest
import torch

from tokengraph import TopK, topk
from tokengraph.select.parts.choices.best import keep_best
from tokengraph.select.topk import fuse_rest
from tokengraph.testing import make_tokens


def test_topk_keeps_the_best_in_their_order():
    a = topk(torch.tensor([[0.1, 0.9, 0.5, 0.7]]), 2)
    assert a.cluster.tolist() == [2, 0, 2, 1]
    assert a.centers.tolist() == [1, 3]
    assert a.drops
    assert a.reduce(torch.tensor([[1.0], [2.0], [3.0], [4.0]]))[0].tolist() == [[2.0], [4.0]]


def test_topk_gives_ties_to_the_lower_index():
    assert topk(torch.zeros(1, 5), 2).cluster.tolist() == [0, 1, 2, 2, 2]


def test_topk_takes_one_budget_an_image_and_a_mask():
    score = torch.tensor([[3.0, 1, 2], [1, 2, 9]])
    assert topk(score, [1, 3]).cluster.tolist() == [0, 4, 4, 1, 2, 3]
    masked = topk(score, 2, mask=torch.tensor([[True, True, True], [True, False, False]]))
    assert masked.cluster.tolist() == [0, 3, 1, 2]
    assert masked.cluster_ptr.tolist() == [0, 2, 3]


def test_fuse_rest_adds_the_rest_up_by_score_without_dividing():
    score = torch.tensor([[0.1, 0.9, 0.5, 0.7]])
    x = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    a = fuse_rest(score, 3)
    pooled, _ = a.reduce(x)
    torch.testing.assert_close(pooled, torch.tensor([[2.0], [4.0], [0.1 * 1 + 0.5 * 3]]))
    assert a.lift(torch.tensor([[10.0], [20.0], [30.0]])).tolist() == [[30.0], [10.0], [30.0], [20.0]]


def test_fuse_rest_lets_gradients_reach_the_scores():
    score = torch.rand(2, 6, requires_grad=True)
    fuse_rest(score, 3).reduce(torch.randn(12, 4))[0].square().sum().backward()
    assert (score.grad != 0).sum(dim=1).tolist() == [4, 4]  # the rest, not the kept


def test_fuse_rest_leaves_whole_images_alone_in_a_ragged_batch():
    a = fuse_rest(torch.rand(2, 4), [4, 2])
    assert a.num_clusters == 6
    assert a.cluster[:4].tolist() == [0, 1, 2, 3]
    assert a.weight[:4].tolist() == [1.0] * 4


def test_topk_strategy_takes_the_mean_class_attention():
    tokens = make_tokens(torch.randn(2, 12, 8), (3, 4))
    score = tokens.class_attention()
    assert torch.equal(TopK()(tokens, 5).cluster, topk(score, 5).cluster)
    by_norm = topk(tokens.x.norm(dim=2), 5).cluster
    assert torch.equal(TopK(score="norm")(tokens, 5).cluster, by_norm)


def test_topk_strategy_without_attention_says_what_to_do():
    tokens = make_tokens(torch.randn(1, 4, 2), (2, 2))
    tokens.attention = None
    with pytest.raises(ValueError, match="got tokens outside a model's block.*score='norm'"):
        TopK()(tokens, 2)
    with pytest.raises(ValueError, match="Expected score to be 'class' or 'norm'"):
        TopK(score="best")


def test_topk_refuses_bad_scores():
    with pytest.raises(ValueError, match=r"Expected score of shape \[B, N\]"):
        topk(torch.rand(4), 2)
    with pytest.raises(ValueError, match="Expected one budget an image, B=1"):
        topk(torch.rand(1, 4), [1, 2])


def test_topk_by_norm_fuses_the_rest_into_a_token_of_their_scale():
    x = torch.tensor([[[3.0, 4.0], [0.0, 10.0], [0.0, 0.0], [0.0, 2.5]]])
    y, size = TopK(score="norm", fuse=True)(make_tokens(x, (1, 4)), 2).reduce(x[0])
    # The rest weighs 5, 0 and 2.5: two thirds, nothing and one third.
    torch.testing.assert_close(y, torch.tensor([[0.0, 10.0], [2.0, 3.5]]))


def test_topk_by_norm_fuses_large_tokens_of_half_precision_without_overflow():
    torch.manual_seed(0)
    x = torch.randn(1, 196, 384, dtype=torch.float16) * 4
    y, _ = TopK(score="norm", fuse=True)(make_tokens(x, (14, 14)), 40).reduce(x[0])
    assert y.isfinite().all() and y[-1].norm() <= x.norm(dim=2).max()


def test_topk_by_norm_fuses_zero_tokens_and_huge_tokens_to_finite_ones():
    for x in (torch.zeros(1, 4, 2), torch.full((1, 4, 2), 1e18)):
        y, _ = TopK(score="norm", fuse=True)(make_tokens(x, (1, 4)), 2).reduce(x[0])
        torch.testing.assert_close(y, x[0, :2])


def test_topk_by_norm_fuses_an_image_alike_alone_and_beside_padding():
    x = torch.rand(2, 4, 3)
    mask = torch.tensor([[True] * 4, [True, True, True, False]])
    tokens = make_tokens(x.masked_fill(~mask[..., None], torch.nan), (1, 4))
    tokens.mask = mask
    y, _ = TopK(score="norm", fuse=True)(tokens, [2, 2]).reduce(x[mask])
    alone, _ = TopK(score="norm", fuse=True)(make_tokens(x[1:, :3], (1, 3)), 2).reduce(x[1, :3])
    torch.testing.assert_close(y[2:], alone)


@pytest.mark.parametrize("average", [False, True])
def test_fuse_rest_lets_gradients_reach_the_scores_of_the_rest(average):
    score = torch.rand(2, 6, dtype=torch.float64, requires_grad=True)
    x = torch.randn(12, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda s: fuse_rest(s.float(), 3, average=average).reduce(x)[0], score, atol=1e-2, eps=1e-3
    )


def test_topk_by_score_gives_an_image_that_keeps_all_the_same_order_alone_and_in_a_batch():
    score = torch.tensor([[0.1, 0.9, 0.5], [0.3, 0.2, 0.7]])
    both = keep_best(score, [3, 2], None, "score")
    assert both.cluster.tolist() == [0, 1, 2, 4, 5, 3] and both.centers.tolist() == [0, 1, 2, 5, 3]
    assert keep_best(score[:1], [3], None, "score").cluster.tolist() == [0, 1, 2]


def test_topk_by_score_keeps_the_order_of_an_image_behind_padding_in_front():
    score = torch.tensor([[0.1, 0.9, 0.5], [0.3, 0.2, 0.7]])
    mask = torch.tensor([[False, True, True], [True, True, True]])
    a = keep_best(score, [2, 2], mask, "score")
    assert a.cluster.tolist() == [0, 1, 3, 4, 2] and a.centers.tolist() == [0, 1, 4, 2]


def test_topk_strategy_fuses_the_rest_to_a_sum_or_to_an_average():
    tokens = make_tokens(torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0)), (2, 3))
    rest = tokens.class_attention()[0].sort(descending=True).values[3:].sum()
    rows = {fuse: TopK(fuse=fuse)(tokens, 4).reduce(tokens.x[0])[0] for fuse in (True, "average")}
    torch.testing.assert_close(rows[True][:3], rows["average"][:3])
    torch.testing.assert_close(rows[True][3], rest * rows["average"][3])


def test_topk_strategy_refuses_another_word_for_fuse():
    with pytest.raises(ValueError, match="Expected fuse to be False, True or 'average' .got 'sum'"):
        TopK(fuse="sum")
