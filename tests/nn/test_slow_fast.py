"""Slow and fast path: a partition of the nodes, and two streams."""

import pytest
import torch
from torch.testing import assert_close

from tokengraph.nn.slow_fast import Partition, merge, slow_fast, split_by_count, split_by_mask


def test_split_by_count_takes_the_best_of_each_image():
    parts = split_by_count(torch.tensor([[0.1, 0.9, 0.5], [0.7, 0.2, 0.8]]), 2)
    assert parts.slow.tolist() == [1, 2, 5, 3] and parts.fast.tolist() == [0, 4]
    assert parts.mask.tolist() == [False, True, True, True, False, True]


def test_split_by_count_gives_ties_to_the_lower_index():
    assert split_by_count(torch.zeros(2, 4), 2).slow.tolist() == [0, 1, 4, 5]


@pytest.mark.parametrize("count", [0, 3])
def test_split_by_count_may_leave_a_path_empty(count):
    parts = split_by_count(torch.randn(2, 3), count)
    assert parts.slow.numel() == 2 * count and parts.fast.numel() == 6 - 2 * count


@pytest.mark.parametrize("count", [-1, 4])
def test_split_by_count_refuses_counts_that_do_not_fit(count):
    with pytest.raises(ValueError, match="0 <= count <= N=3"):
        split_by_count(torch.zeros(1, 3), count)


def test_split_by_count_refuses_flat_scores():
    with pytest.raises(ValueError, match=r"score of shape \[B, N\]"):
        split_by_count(torch.zeros(3), 1)


def test_split_by_mask_lets_images_differ():
    parts = split_by_mask(torch.tensor([[True, False, True], [False, False, False]]))
    assert parts.slow.tolist() == [0, 2] and parts.fast.tolist() == [1, 3, 4, 5]


def test_slow_fast_adds_to_each_node_what_its_own_path_gives():
    x, base = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[10.0], [20.0], [30.0]])
    parts = Partition(torch.tensor([2, 0]), torch.tensor([1]))
    assert slow_fast(x, base, parts, lambda r: r * 100, lambda r: -r).tolist() == [[110.0], [18.0], [330.0]]
    assert base.tolist() == [[10.0], [20.0], [30.0]]


def test_slow_fast_has_the_gradients_of_the_masked_sum():
    x, base = torch.randn(6, 4, dtype=torch.double), torch.randn(6, 4, dtype=torch.double)
    parts, slow, fast = split_by_count(torch.randn(2, 3), 1), torch.nn.Linear(4, 4).double(), torch.nn.Linear(4, 4)
    fast, cotangent, grads = fast.double(), torch.randn(6, 4, dtype=torch.double), []
    mask = parts.mask[:, None].double()
    for routed in (True, False):
        inputs = [x.clone().requires_grad_(), base.clone().requires_grad_(), slow.weight, fast.weight]
        if routed:
            out = slow_fast(inputs[0], inputs[1], parts, slow, fast)
        else:
            out = inputs[1] + slow(inputs[0]) * mask + fast(inputs[0]) * (1 - mask)
        grads.append(torch.autograd.grad(out, inputs, cotangent))
    for ours, theirs in zip(*grads, strict=True):
        assert_close(ours, theirs)


def test_slow_fast_in_half_precision_adds_to_a_wider_stream():
    x = torch.randn(4, 2)
    out = slow_fast(x.bfloat16(), x, split_by_count(torch.zeros(1, 4), 2), lambda r: r, lambda r: r * 0)
    assert out.dtype == torch.float32 and torch.equal(out[2:], x[2:])


def test_slow_fast_refuses_another_number_of_nodes():
    with pytest.raises(ValueError, match="M=3 nodes"):
        slow_fast(torch.zeros(4, 1), torch.zeros(4, 1), split_by_count(torch.zeros(1, 3), 1), abs, abs)


def test_merge_is_exact_and_its_mask_has_the_gradient_of_the_difference():
    slow, fast = torch.randn(2, 3), torch.randn(2, 3)
    mask = torch.tensor([[1.0], [0.0]], requires_grad=True)
    out = merge(slow, fast, mask)
    assert torch.equal(out, torch.stack([slow[0], fast[1]]))
    out.sum().backward()
    assert_close(mask.grad, (slow - fast).sum(dim=1, keepdim=True))
