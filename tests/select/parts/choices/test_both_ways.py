"""Merging out of both halves."""

import pytest
import torch

from tokengraph.select.parts.choices.both_ways import merge_both_ways


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize(("leave_a", "leave_b"), [(1, 2), (3, 3), (0, 4), (4, 0)])
def test_merge_both_ways_of_one_number_for_all_images_is_that_of_a_column(leave_a, leave_b, first):
    weight = torch.randint(0, 4, (2, 5, 5 + first)).float()  # with ties
    column = torch.full((2, 1), leave_a), torch.full((2, 1), leave_b)
    found = merge_both_ways(weight, (leave_a, leave_b), (None, None), first)
    assert torch.equal(found, merge_both_ways(weight, column, (None, None), first))
    clusters = 10 + first - leave_a - leave_b
    assert all(torch.equal(image.unique(), torch.arange(clusters)) for image in found)


def test_merge_both_ways_moves_chains_together():
    weight = torch.tensor([[[0.1, 0.9], [0.0, 0.8]]])  # a0 merges into b1, and b1 with it into a1; b0 stays
    assert merge_both_ways(weight, (1, 1), (None, None), 0).tolist() == [[0, 1, 0, 0]]
