"""Weighted maps out of a matrix for each image."""

import pytest
import torch
from torch.testing import assert_close

from tokengraph import SoftAssignment


def test_from_matrix_reduces_as_the_product():
    w, x, size = torch.rand(2, 5, 3), torch.randn(10, 4), torch.rand(10) + 0.5
    rows, sizes = SoftAssignment.from_matrix(w).reduce(x, size)
    plain, _ = SoftAssignment.from_matrix(w, normalize=False).reduce(x, size)
    for b in range(2):
        own, mine = x.view(2, 5, 4)[b], size.view(2, 5)[b]
        mass = w[b].T * mine
        assert_close(sizes.view(2, 3)[b], mass.sum(dim=1))
        assert_close(rows.view(2, 3, 4)[b], mass @ own / mass.sum(dim=1, keepdim=True))
        assert_close(plain.view(2, 3, 4)[b], w[b].T @ own)


def test_from_matrix_takes_images_of_their_own_sizes():
    w = torch.rand(2, 4, 3)
    mask = torch.tensor([[True, True, True, True], [True, False, True, False]])
    a = SoftAssignment.from_matrix(w, [3, 1], mask=mask, centers=torch.tensor([[0, 1, 2], [2, 0, 0]]))
    assert (a.num_tokens, a.num_clusters, a.counts) == (6, 4, (3, 1))
    assert a.ptr.tolist() == [0, 4, 6] and a.cluster_ptr.tolist() == [0, 3, 4] and a.centers.tolist() == [0, 1, 2, 5]
    x = torch.randn(6, 2)
    alone = SoftAssignment.from_matrix(w[1:, [0, 2], :1])
    assert_close(a.reduce(x)[0][3:], alone.reduce(x[4:])[0])


def test_from_matrix_with_topk_keeps_sums_and_the_lower_of_equals():
    w = torch.tensor([[[0.25, 0.25, 0.25, 0.25], [0.0, 0.5, 0.1, 0.4]]])
    a = SoftAssignment.from_matrix(w, topk=2)
    assert a.cluster.tolist() == [0, 1, 1, 3]
    assert_close(a.weight, torch.tensor([0.5, 0.5, 5 / 9, 4 / 9]))


def test_from_matrix_lets_gradients_reach_the_weights():
    w = torch.rand(1, 4, 2, dtype=torch.float64, requires_grad=True)
    x = torch.randn(4, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda m: SoftAssignment.from_matrix(m).reduce(x)[0], w, atol=1e-4)


def test_from_matrix_refuses_what_does_not_fit():
    w = torch.rand(2, 4, 3)
    with pytest.raises(ValueError, match=r"Expected at most M=3 clusters for each of B=2 images \(got 4\)"):
        SoftAssignment.from_matrix(w, 4)
    with pytest.raises(ValueError, match=r"Expected at most M=3 clusters for each of B=2 images \(got \[3\]\)"):
        SoftAssignment.from_matrix(w, [3])
    with pytest.raises(ValueError, match="Expected topk >= 1"):
        SoftAssignment.from_matrix(w, topk=0)
    with pytest.raises(ValueError, match=r"Expected matrix of shape"):
        SoftAssignment.from_matrix(w[0])
    with pytest.raises(TypeError, match="Expected floating-point matrix"):
        SoftAssignment.from_matrix(w.long())
