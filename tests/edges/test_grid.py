import pytest
import torch
from torch_geometric.utils import coalesce, remove_self_loops
from torch_geometric.utils import grid as pyg_grid

from tokengraph import grid_graph
from tokengraph.edges import grid_positions

SHAPES = pytest.mark.parametrize("grid", [(1, 1), (1, 7), (7, 1), (2, 2), (3, 3), (2, 9), (5, 4)])


def brute_force(height: int, width: int, neighbors: int) -> list[tuple[int, int]]:
    """Edges (source, target) by looking at every pair, in the order of target then source."""
    patches = [(y, x) for y in range(height) for x in range(width)]
    edges = []
    for target, (y, x) in enumerate(patches):
        for source, (v, u) in enumerate(patches):
            dy, dx = abs(y - v), abs(x - u)
            if (dy + dx == 1) if neighbors == 4 else (max(dy, dx) == 1):
                edges.append((source, target))
    return edges


@SHAPES
@pytest.mark.parametrize("neighbors", [4, 8])
def test_grid_graph_equals_looking_at_every_pair(grid, neighbors):
    edges = grid_graph(grid, neighbors)
    assert edges.dtype == torch.long and edges.size(0) == 2
    assert [tuple(e) for e in edges.T.tolist()] == brute_force(*grid, neighbors)


@pytest.mark.parametrize("grid", [(3, 3), (2, 9), (5, 4)])
def test_grid_graph_of_8_equals_pygs_grid_without_loops(grid):
    theirs, _ = remove_self_loops(pyg_grid(*grid)[0])
    assert torch.equal(coalesce(grid_graph(grid)), coalesce(theirs))


@SHAPES
@pytest.mark.parametrize("neighbors", [4, 8])
def test_grid_graph_shifts_each_image_of_a_batch(grid, neighbors):
    one, patches = grid_graph(grid, neighbors), grid[0] * grid[1]
    expected = torch.cat([one, one + patches, one + 2 * patches], dim=1)
    assert torch.equal(grid_graph(grid, neighbors, batch_size=3), expected)


def test_grid_graph_looks_at_neighbors_grid_and_batch_size_before_it_reuses_a_table():
    sizes = [grid_graph(g, n, batch_size=b).size(1) for g in ((2, 3), (3, 2)) for n in (4, 8) for b in (1, 2)]
    assert sizes == [14, 28, 22, 44, 14, 28, 22, 44]
    assert grid_graph((2, 3), 4).tolist() != grid_graph((3, 2), 4).tolist()


def test_grid_graph_goes_to_the_device():
    assert grid_graph((2, 3), device="meta").device.type == "meta"
    assert grid_graph((2, 3)).device.type == "cpu"


def test_grid_graph_first_built_in_inference_mode_serves_training():
    with torch.inference_mode():
        grid_graph((3, 11))
    x = torch.randn(33, 2, requires_grad=True)
    x[grid_graph((3, 11))[0]].sum().backward()
    assert x.grad.any()


@pytest.mark.parametrize("neighbors", [0, 5, 6, "8"])
def test_grid_graph_refuses_other_neighbourhoods(neighbors):
    with pytest.raises(ValueError, match=rf"Expected neighbors to be 4 or 8 \(got {neighbors}\)"):
        grid_graph((2, 3), neighbors)


@pytest.mark.parametrize("grid", [(0, 3), (3, 0), (-1, 3)])
def test_grid_graph_refuses_an_empty_grid(grid):
    with pytest.raises(ValueError, match=rf"a grid of at least 1 x 1 \(got {grid[0]} x {grid[1]}\)"):
        grid_graph(grid)


def test_grid_positions_are_the_centres_in_row_major_order():
    pos = grid_positions((2, 3))
    assert pos.tolist() == [[0.5, 0.5], [0.5, 1.5], [0.5, 2.5], [1.5, 0.5], [1.5, 1.5], [1.5, 2.5]]
    assert pos.dtype == torch.float32


def test_grid_positions_of_an_empty_grid_are_none():
    assert grid_positions((0, 3)).shape == (0, 2)
