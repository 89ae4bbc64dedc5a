"""Maps get the number of clusters of each image."""

import pytest
import torch

import tokengraph as tg
from tokengraph.maps.counts import with_counts


def test_with_counts_takes_only_maps():
    with pytest.raises(TypeError, match=r"a strategy to return an Assignment .* \(got Tensor\).*from_dense"):
        with_counts(torch.zeros(2, 4, dtype=torch.long), 2)


def test_with_counts_leaves_equal_images_as_they_are():
    assignment = tg.Assignment.from_dense(torch.tensor([[0, 0, 1], [1, 0, 0]]), 2)
    assert with_counts(assignment, 2) is assignment
