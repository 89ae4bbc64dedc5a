import pytest
import torch

from tokengraph import window_graph
from tokengraph.edges.window import window_tiles

GRIDS = [(1, 1), (1, 7), (7, 1), (2, 30), (30, 2), (8, 8), (13, 9)]
LAMBDAS = [1, 5, 50, 200]
CASES = pytest.mark.parametrize("lam", LAMBDAS)
SHAPES = pytest.mark.parametrize("grid", GRIDS, ids=str)


def brute_force(grid: tuple[int, int], lam: int) -> torch.Tensor:
    """The window by sorting all other patches by (squared distance, index)."""
    patch = torch.arange(grid[0] * grid[1])
    y, x = patch // grid[1], patch % grid[1]
    squared = (y[:, None] - y).square() + (x[:, None] - x).square()
    squared.fill_diagonal_(-1)
    return squared.argsort(dim=1, stable=True)[:, 1 : lam + 1]


@SHAPES
@CASES
def test_window_graph_equals_sorting_all_patches(grid, lam):
    assert torch.equal(window_graph(grid, lam), brute_force(grid, lam))


@SHAPES
def test_window_graph_of_every_rank_but_the_last_equals_sorting(grid):
    most = grid[0] * grid[1] - 1
    for lam in {max(most - 1, 1), max(most, 1), most + 1}:
        assert torch.equal(window_graph(grid, lam), brute_force(grid, lam))


def test_window_graph_is_clamped_to_the_other_patches():
    assert window_graph((2, 2), 50).tolist() == [[1, 2, 3], [0, 3, 2], [0, 3, 1], [1, 2, 0]]
    assert window_graph((1, 1), 3).shape == (1, 0)


@pytest.mark.parametrize("tile", [1, 3, 8])
@SHAPES
def test_window_tiles_hold_the_window_graph(grid, tile):
    patches = torch.arange(grid[0] * grid[1])
    for lam in {min(lam, max(len(patches) - 1, 1)) for lam in LAMBDAS}:  # more is the same as all
        window, tiles = window_graph(grid, lam), window_tiles(grid, lam, tile=tile)
        seen = tiles.candidates[torch.arange(tiles.local.size(0))[:, None, None], tiles.local]
        assert torch.equal(seen, window[tiles.queries]), lam
        assert torch.equal(tiles.queries.flatten()[tiles.slot], patches), lam


def test_window_tiles_look_at_a_bounded_number_of_candidates():
    small, large = (window_tiles((side, side), 50).candidates.size(1) for side in (24, 40))
    assert small == large < 24 * 24


def test_window_graph_goes_to_the_device():
    assert window_graph((2, 3), 2, device="meta").device.type == "meta"


def test_window_graph_first_built_in_inference_mode_serves_training():
    with torch.inference_mode():
        window_graph((3, 11), 4)
    x = torch.randn(33, 2, requires_grad=True)
    x[window_graph((3, 11), 4)].sum().backward()
    assert x.grad.any()


def test_window_graph_refuses_values_out_of_range():
    with pytest.raises(ValueError, match=r"Expected lam >= 1 \(got lam=0\)"):
        window_graph((2, 3), 0)
    with pytest.raises(TypeError, match=r"Expected lam to be an int \(got 2.5\)"):
        window_graph((2, 3), 2.5)
    with pytest.raises(ValueError, match=r"a grid of at least 1 x 1 \(got 0 x 3\)"):
        window_graph((0, 3), 2)
