"""Cell numbers interpolated between cells, as the released 3-D code has them."""

import itertools

import pytest
import torch

from tokengraph.edges.cells import cell_edges
from tokengraph.edges.fractional import fractional_edges


def candidates(edges, patches):
    token, cluster, _ = edges
    return [set(cluster[token == n].tolist()) for n in range(patches)]


def test_fractional_edges_differ_from_the_nearest_cells_as_the_specification_measured():
    grid, clusters = (8, 12, 12), (8, 6, 6)
    ours, nearest = (candidates(f(grid, clusters, 5), 1152) for f in (fractional_edges, cell_edges))
    assert sum(a != b for a, b in zip(ours, nearest, strict=True)) == 1056
    assert sum(map(len, ours)) / 1152 == pytest.approx(57.02, abs=0.01)


def test_fractional_edges_of_equal_grids_are_the_nearest():
    # Each patch has its own cell, so that every number is whole.
    for a, b in zip(fractional_edges((3, 4, 5), (3, 4, 5), 3), cell_edges((3, 4, 5), (3, 4, 5), 3), strict=True):
        assert torch.equal(a, b)


def test_fractional_edges_of_a_row_follow_the_rule_by_hand():
    # Cells 0, 1 over four patches: numbers 0, 0.25, 0.75, 1, each within 1 of both cells; cells 0 to 3 over eight: 0,
    # 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.
    token, cluster, order = fractional_edges((1, 1, 8), (1, 1, 4), 3)
    near = [[0, 1], [0, 1], [0, 1], [1, 2], [1, 2], [2, 3], [2, 3], [2, 3]]
    assert [cluster[token == n].tolist() for n in range(8)] == near
    assert cluster[order].tolist() == sorted(cluster.tolist())


def test_fractional_edges_give_every_patch_a_cell():
    for grid, clusters in itertools.product([(2, 5, 7), (4, 3, 3)], [(2, 2, 3), (1, 3, 2), (4, 6, 9)]):
        token, _, _ = fractional_edges(grid, clusters, 3)
        assert token.unique().numel() == grid[0] * grid[1] * grid[2]


def test_fractional_edges_refuse_images_and_a_window_of_one():
    with pytest.raises(ValueError, match=r"Expected a grid \(T, H, W\) for label_map='trilinear' \(got \(4, 4\)\)"):
        fractional_edges((4, 4), (2, 2), 3)
    with pytest.raises(ValueError, match=r"Expected window >= 3 with label_map='trilinear' \(got window=1\)"):
        fractional_edges((2, 4, 4), (2, 2, 2), 1)
