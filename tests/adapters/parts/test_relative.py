"""A relative position bias between coarse tokens: rows of single patches, means of merged ones, sums with masks."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import tokengraph as tg
from tokengraph.adapters.parts.relative import BiasedKeepMask, coarse_bias, with_bias
from tokengraph.attention.size_bias import SizeBias
from tokengraph.flat.layout import Layout
from tokengraph.maps.lineage import Lineage
from tokengraph.nn import KeepMask


def merged(cluster, count, *, drops=False, valid=None, counts=None):
    cluster = torch.tensor(cluster)
    map_ = tg.Assignment.from_dense(cluster, count if counts is None else counts, drops=drops)
    images, patches = cluster.shape
    return Lineage(Layout(images, patches), Layout(images, count, counts, valid), (map_,))


def test_merged_keys_get_the_log_of_the_mean_weight_and_merged_queries_the_mean_log():
    bias = torch.tensor([[1.0, 1, 3], [4, 2, 6], [9, 8, 8]]).log()[None]  # a class token and two patches
    out = coarse_bias(bias, merged([[0, 0], [0, 0]], 1), 1)
    assert out.shape == (2, 1, 2, 2)
    assert_close(out[0, 0].exp(), torch.tensor([[1.0, 2.0], [6.0, 32.0**0.5]]))
    assert torch.equal(out[0], out[1])


def test_dropped_patches_have_no_say():
    bias = torch.tensor([[1.0, 1, 9, 3], [4, 2, 9, 6], [7, 7, 7, 7], [9, 8, 9, 8]]).log()[None]
    out = coarse_bias(bias, merged([[0, -1, 0]], 1, drops=True), 1)
    assert_close(out[0, 0].exp(), torch.tensor([[1.0, 2.0], [6.0, 32.0**0.5]]))


def test_equal_keys_merge_without_a_trace():
    """With the log of their number, equal keys merged into one weigh as much as they did together."""
    bias = torch.randn(2, 7, 7)
    state = merged([[0, 1, 2, 0, 1, 0]], 3)
    source = torch.tensor([0, 1, 2, 3, 1, 2, 1])  # one token of each cluster, to which all its tokens are equal
    q, k, v = torch.randn(3, 1, 2, 4, 8)
    full = F.scaled_dot_product_attention(q[:, :, source], k[:, :, source], v[:, :, source], attn_mask=bias)
    size = torch.tensor([1.0, 3.0, 2.0, 1.0]).log()
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=coarse_bias(bias, state, 1) + size)
    assert_close(out[:, :, [0, 3]], full[:, :, [0, 3]])  # queries that were not merged


def test_a_token_that_descends_from_one_patch_has_its_row_and_column():
    lineage = merged([[0, 0, 1]], 2)
    lineage.ancestor = torch.tensor([[1, 2]])
    out = coarse_bias(torch.arange(16.0).view(1, 4, 4), lineage, 1)
    assert out[0, 0].tolist() == [[0.0, 2.0, 3.0], [8.0, 10.0, 11.0], [12.0, 14.0, 15.0]]


def by_hand(bias, matrix):
    """Matrix ``[T, n]`` of a map: the definition, with its columns divided by their sums."""
    matrix = matrix / matrix.sum(dim=0)
    return matrix.T @ (bias.exp() @ matrix).log()


def test_images_may_keep_different_numbers_of_tokens():
    valid = torch.tensor([[True, True], [True, False]])
    bias = torch.randn(1, 4, 4)
    out = coarse_bias(bias, merged([[0, 0, 1], [0, 0, 0]], 2, valid=valid, counts=[2, 1]), 1)
    assert_close(out[0], by_hand(bias, torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1]])))
    assert_close(out[1, :, :2, :2], by_hand(bias, torch.tensor([[1.0, 0], [0, 1], [0, 1], [0, 1]])))
    assert out.isfinite().all()


@pytest.mark.parametrize("grad", [False, True])
def test_every_kind_of_map_gives_what_its_matrix_gives(grad):
    bias = torch.randn(3, 22, 22, requires_grad=grad)
    cluster = torch.randint(0, 6, (4, 20))
    cluster[:, :6] = torch.arange(6)
    hard = tg.Assignment.from_dense(cluster, 6)
    soft = tg.SoftAssignment.from_hard(hard)
    soft = tg.SoftAssignment(soft.token, soft.cluster, torch.rand(80) + 0.1, 80, 24)
    for map_ in (hard, soft):
        out = coarse_bias(bias, Lineage(Layout(4, 20), Layout(4, 6), (map_,)), 2)
        for b in range(4):
            matrix = torch.zeros(22, 8)
            matrix[0, 0] = matrix[1, 1] = 1
            weight = torch.ones(20) if map_ is hard else soft.weight.view(4, 20)[b]
            matrix[torch.arange(2, 22), cluster[b] + 2] = weight
            assert_close(out[b], by_hand(bias, matrix))
        if grad:
            ours, theirs = (
                torch.autograd.grad(o.square().sum(), bias, retain_graph=True)[0]
                for o in (out[3], by_hand(bias, matrix))
            )
            assert_close(ours, theirs)


def test_a_bias_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"shape \[H, 4, 4\] .got \[1, 5, 5\]"):
        coarse_bias(torch.zeros(1, 5, 5), merged([[0, 0, 1]], 2), 1)


def test_a_keep_mask_with_a_bias_is_the_softmax_over_kept_keys():
    q, k, v = torch.randn(3, 2, 4, 5, 8)
    bias, keep = torch.randn(1, 4, 5, 5), torch.tensor([[1.0, 1, 0, 1, 1], [1, 0, 1, 0, 1]])
    barred = torch.zeros(2, 1, 5, 5).masked_fill(keep[:, None, None] == 0, -torch.inf)
    barred.diagonal(dim1=2, dim2=3).zero_()  # each pays itself
    wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=bias + barred)
    mask = with_bias(KeepMask(keep), bias)
    assert isinstance(mask, BiasedKeepMask)
    assert_close(F.scaled_dot_product_attention(q, k, v, attn_mask=mask), wanted)  # type: ignore[arg-type]
    scores = q @ k.transpose(2, 3) * 8**-0.5
    assert_close((scores + mask).softmax(dim=-1) @ v, wanted)


def test_the_gradient_of_decisions_sees_the_bias():
    q, k, v = torch.randn(3, 1, 2, 4, 8, dtype=torch.float64).requires_grad_()
    bias = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    keep = torch.tensor([[1.0, 0.7, 0.4, 0.9]], dtype=torch.float64, requires_grad=True)

    def attend(bias, keep):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=with_bias(KeepMask(keep), bias))  # type: ignore

    assert torch.autograd.gradcheck(attend, (bias, keep))


def test_a_bias_meets_every_other_mask_as_a_sum():
    bias, size = torch.randn(1, 2, 3, 3), torch.tensor([1.0, 2.0, 3.0]).log().view(1, 1, 1, 3)
    assert with_bias(None, bias) is bias and with_bias(size, None) is size and with_bias(None, None) is None
    assert torch.equal(with_bias(size, bias), bias + size)
    assert torch.equal(with_bias(SizeBias(size, torch.float32), bias), bias + size)


def test_a_keep_mask_with_a_bias_of_keys_keeps_it_beside_those_of_pairs():
    q, k, v = torch.randn(3, 1, 2, 4, 8)
    keep, keys, first, second = torch.ones(1, 4), torch.randn(1, 4), torch.randn(1, 2, 4, 4), torch.randn(1, 2, 4, 4)
    keep[0, 2] = 0
    mask = with_bias(with_bias(KeepMask(keep, bias=keys), first), second)
    barred = torch.zeros(1, 1, 4, 4).masked_fill(keep[:, None, None] == 0, -torch.inf)
    barred.diagonal(dim1=2, dim2=3).zero_()
    whole = keys[:, None, None] + first + second + barred
    wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=whole)
    assert_close(F.scaled_dot_product_attention(q, k, v, attn_mask=mask), wanted)
    scores = q @ k.transpose(2, 3) * 8**-0.5
    assert_close((scores + mask).softmax(dim=-1) @ v, wanted)
    assert_close(mask.rows(scores[:, :, 1:3], 1), (scores + whole).softmax(dim=-1)[:, :, 1:3])
