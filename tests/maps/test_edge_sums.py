"""Rows that join picked ones."""

import pytest
import torch

from tokengraph.maps.edge_sums import mean_with_joined

X = torch.tensor([[1.0, 0.0], [2.0, 2.0], [3.0, 6.0], [5.0, 1.0]])
OWN, TOKEN, CLUSTER = torch.tensor([0, 3]), torch.tensor([1, 2]), torch.tensor([0, 0])


def test_mean_with_joined_takes_plain_means_and_adds_masses():
    rows, size = mean_with_joined(X, torch.tensor([1.0, 0.5, 0.25, 2.0]), OWN, TOKEN, CLUSTER)
    assert torch.allclose(rows[0], torch.tensor([2.0, 8 / 3]))
    assert torch.equal(rows[1], X[3])
    assert size.tolist() == [1.75, 2.0]


def test_mean_with_joined_weighs_the_rows_that_join():
    rows, size = mean_with_joined(X, None, OWN, TOKEN, CLUSTER, torch.tensor([0.5, 0.25]))
    assert torch.allclose(rows[0], torch.tensor([2.75 / 1.75, 2.5 / 1.75]))
    assert size.tolist() == [1.75, 1.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_mean_with_joined_keeps_the_dtype(dtype):
    rows, size = mean_with_joined(X.to(dtype), torch.ones(4), OWN, TOKEN, CLUSTER)
    assert rows.dtype == dtype and size.dtype == torch.float32
    assert torch.equal(rows[1], X[3].to(dtype))
