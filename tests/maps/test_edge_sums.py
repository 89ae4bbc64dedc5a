"""Weighted rows of edges, added to picked ones."""

import pytest
import torch

from tokengraph.maps.edge_sums import mean_with_extra

X = torch.tensor([[1.0, 0.0], [2.0, 2.0], [3.0, 6.0], [5.0, 1.0]])
OWN, TOKEN, CLUSTER = torch.tensor([0, 3]), torch.tensor([1, 2]), torch.tensor([0, 0])


def test_mean_with_extra_weighs_the_rows_of_edges():
    rows, size = mean_with_extra(X, OWN, TOKEN, CLUSTER, torch.tensor([0.5, 0.25]))
    assert torch.allclose(rows[0], torch.tensor([2.75 / 1.75, 2.5 / 1.75]))
    assert torch.equal(rows[1], X[3])
    assert size.tolist() == [1.75, 1.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_mean_with_extra_keeps_the_dtype(dtype):
    rows, size = mean_with_extra(X.to(dtype), OWN, TOKEN, CLUSTER, torch.ones(2))
    assert rows.dtype == dtype and size.dtype == torch.float32
    assert torch.equal(rows[1], X[3].to(dtype))
