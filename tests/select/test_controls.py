"""The honest controls: random pruning and pooling over grid cells."""

import pytest
import torch

from tokengraph import Random, grid_pool
from tokengraph.edges import grid_positions
from tokengraph.select.random import random_prune, random_score
from tokengraph.testing import make_tokens


def test_random_score_is_uniform_and_independent_of_the_number_of_tokens():
    score = random_score(20000, 3)
    assert torch.equal(score[:100], random_score(100, 3))
    assert abs(score.mean() - 0.5) < 0.01 and abs(score.var() - 1 / 12) < 0.005
    assert score.min() >= 0 and score.max() < 1
    assert score.unique().numel() > 19900
    neighbors = torch.corrcoef(torch.stack([score[:-1], score[1:]]))[0, 1]
    seeds = torch.corrcoef(torch.stack([score, random_score(20000, 4)]))[0, 1]
    assert abs(neighbors) < 0.03 and abs(seeds) < 0.03


def test_random_prune_keeps_the_same_places_in_every_image():
    a = random_prune(2, 30, 10, seed=1)
    first, second = a.cluster.view(2, 30)
    assert torch.equal(first < 20, second < 20)
    assert not torch.equal(a.cluster, random_prune(2, 30, 10, seed=2).cluster)


def test_random_draws_anew_in_each_layer():
    x = torch.randn(1, 48, 4)
    kept = [Random()(make_tokens(x, (6, 8), layer=i), 20).cluster for i in range(2)]
    assert not torch.equal(*kept)


@pytest.mark.parametrize(("grid", "cells"), [((4, 6), (2, 3)), ((8, 8), (4, 4)), ((6, 12), (2, 4)), ((12, 6), (4, 2))])
def test_grid_pool_is_average_pooling_where_cells_divide_the_grid(grid, cells):
    x = torch.randn(2, 5, *grid)
    flat = x.flatten(2).transpose(1, 2)
    a = grid_pool(grid_positions(grid).expand(2, -1, -1), cells[0] * cells[1], grid)
    pooled = a.reduce(flat.flatten(0, 1))[0].view(2, -1, 5).transpose(1, 2).view(2, 5, *cells)
    torch.testing.assert_close(pooled, torch.nn.functional.adaptive_avg_pool2d(x, cells))


@pytest.mark.parametrize("keep", [1, 2, 3, 7, 13, 34, 35])
def test_grid_pool_gives_cells_of_nearly_equal_counts_for_any_budget(keep):
    a = grid_pool(grid_positions((5, 7))[None], keep, (5, 7))
    counts = torch.bincount(a.cluster, minlength=keep)
    assert counts.min() >= 1 and counts.max() <= 2 * -(-35 // keep)


def test_grid_pool_reads_positions_not_order():
    pos = grid_positions((4, 4))
    order = torch.randperm(16)
    straight = grid_pool(pos[None], 4, (4, 4)).cluster
    assert torch.equal(grid_pool(pos[order][None], 4, (4, 4)).cluster, straight[order])


def test_grid_pool_with_a_mask_equals_each_image_alone():
    pos = grid_positions((4, 4)).expand(2, -1, -1)
    mask = torch.arange(16) < torch.tensor([[16], [9]])
    got = grid_pool(pos, 4, (4, 4), mask=mask)
    alone = grid_pool(pos[1:, :9], 4, (4, 4)).cluster
    assert torch.equal(got.cluster[16:] - 4, alone)


def test_grid_pool_refuses_positions_of_another_shape():
    with pytest.raises(ValueError, match=r"Expected pos of shape \[B, N, 2\]"):
        grid_pool(torch.rand(1, 4, 3), 2, (2, 2))


def test_grid_pool_refuses_positions_that_are_not_finite():
    pos = grid_positions((2, 2))[None].clone()
    pos[0, 1] = float("nan")
    with pytest.raises(ValueError, match=r"Expected finite positions \(got NaN or infinity in 1 rows\)"):
        grid_pool(pos, 2, (2, 2))
    assert grid_pool(pos, 2, (2, 2), mask=torch.tensor([[True, False, False, False]])).num_clusters == 1
