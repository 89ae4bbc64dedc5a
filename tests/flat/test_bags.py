"""Sums of edges by ``embedding_bag`` and their derivatives: first, second, forward."""

import pytest
import torch

from tokengraph.flat.looks import may_differentiate, may_look, transforming, under_vmap
from tokengraph.flat.segment import segment_sum, weighted_sum

SORTED, MIXED = torch.tensor([0, 0, 1, 3, 3]), torch.tensor([3, 0, 1, 0, 3])  # row 2 gets nothing
SOURCE = torch.tensor([2, 0, 0, 1, 2])


def tensors(dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(3, 2, generator=g, dtype=dtype), torch.rand(5, generator=g, dtype=dtype)
    return x.requires_grad_(), weight.requires_grad_()


@pytest.mark.parametrize("index", [SORTED, MIXED])
@pytest.mark.parametrize("batched", [False, True])
def test_weighted_sum_of_edges_has_both_derivatives_and_a_tangent(index, batched):
    x, weight = tensors()
    x = x.detach().view(3, 2, 1).requires_grad_() if batched else x

    def total(x, weight):
        return weighted_sum(x, weight, index, 4, source=SOURCE)

    assert torch.autograd.gradcheck(total, (x, weight), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(total, (x, weight))


@pytest.mark.parametrize("index", [SORTED, MIXED])
def test_gradients_of_edges_are_bit_for_bit_those_of_embedding_bag(index):
    x, weight = tensors(torch.float32)
    order = index.argsort(stable=True)
    starts = torch.searchsorted(index[order], torch.arange(4))
    wanted = torch.nn.functional.embedding_bag(SOURCE[order], x, starts, mode="sum", per_sample_weights=weight[order])
    got = weighted_sum(x, weight, index, 4, source=SOURCE)
    assert torch.equal(got, wanted)
    along = torch.randn(4, 2, generator=torch.Generator().manual_seed(1))
    for a, b in zip(
        torch.autograd.grad(got, (x, weight), along), torch.autograd.grad(wanted, (x, weight), along), strict=True
    ):
        assert torch.equal(a, b)


def test_a_gradient_with_a_graph_is_the_one_without():
    x, weight = tensors()
    for one in (x, weight):
        total = weighted_sum(x, weight, MIXED, 4, source=SOURCE).square().sum()
        (with_graph,) = torch.autograd.grad(total, one, create_graph=True)
        (without,) = torch.autograd.grad(total, one)
        assert with_graph.requires_grad
        torch.testing.assert_close(with_graph, without)


def test_sums_take_one_index_for_each_image_under_vmap():
    x, weight = (t.detach() for t in tensors())
    index = torch.stack([SORTED, MIXED])
    got = torch.func.vmap(lambda i: weighted_sum(x, weight, i, 4, source=SOURCE))(index)
    for row, i in zip(got, index, strict=True):
        torch.testing.assert_close(row, weighted_sum(x, weight, i, 4, source=SOURCE))
    ones = torch.ones(5)
    assert torch.func.vmap(lambda i: segment_sum(ones, i, 4))(index).tolist() == [[2.0, 1.0, 0.0, 2.0]] * 2


def test_looks_know_transforms():
    seen = []

    def look(x):
        seen.append((may_look(x), under_vmap(), transforming(), may_differentiate(x)))
        return x.sum()

    look(torch.ones(2))
    look(torch.ones(2, requires_grad=True))
    torch.func.grad(look)(torch.ones(2))
    torch.func.vmap(torch.func.grad(look))(torch.ones(2, 2))
    torch.func.grad(lambda x: torch.func.vmap(look)(x).sum())(torch.ones(2, 2))
    assert seen == [
        (True, False, False, False),
        (True, False, False, True),
        (True, False, True, True),
        (False, True, True, True),
        (False, True, True, True),
    ]


def test_a_tangent_counts_as_a_derivative():
    with torch.autograd.forward_ad.dual_level():
        assert may_differentiate(torch.autograd.forward_ad.make_dual(torch.ones(2), torch.ones(2)))
        assert not may_differentiate(torch.ones(2))
