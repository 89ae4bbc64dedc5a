"""k-means without random numbers."""

import pytest
import torch

from tokengraph.select.parts.choices.kmeans import kmeans


def inertia(x, label):
    return sum(float((x[label == c] - x[label == c].mean(0)).square().sum()) for c in label.unique())


def test_kmeans_finds_blobs():
    center = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]], dtype=torch.float64)
    x = center.repeat_interleave(5, 0) + 0.3 * torch.randn(15, 2, generator=torch.Generator().manual_seed(0))
    label = kmeans(x, 3).view(3, 5)
    assert [row.unique().numel() for row in label] == [1, 1, 1] and label[:, 0].unique().numel() == 3


def test_kmeans_ends_where_no_step_helps_and_near_scikit_learn():
    cluster = pytest.importorskip("sklearn.cluster")
    x = torch.randn(60, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    label = kmeans(x, 6, steps=100)
    mean = torch.stack([x[label == c].mean(0) for c in range(6)])
    assert torch.equal(torch.cdist(x, mean).argmin(1), label)
    theirs = cluster.KMeans(6, n_init=10, random_state=0).fit(x.numpy()).inertia_
    assert inertia(x, label) < 1.25 * theirs


@pytest.mark.parametrize("keep", [1, 4, 7, 8])
def test_kmeans_leaves_no_cluster_empty_where_rows_are_equal(keep):
    x = torch.tensor([[0.0]] * 6 + [[1.0]] * 2, dtype=torch.float64)
    assert kmeans(x, keep).unique().tolist() == list(range(keep))
