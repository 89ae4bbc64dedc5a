"""Grids (T, H, W): every table against one that looks at all pairs, and one frame against the plane."""

import itertools
import math

import numpy as np
import pytest
import torch

from tokengraph import grid_graph, window_graph
from tokengraph.edges import grid_positions
from tokengraph.edges.cells import cell_edges, cell_tiles, label_map, pool_edges, pool_matrices, tile_pairs
from tokengraph.edges.window import window_tiles

CASES = [((8, 12, 12), (8, 6, 6), 5), ((3, 5, 4), (2, 3, 3), 3), ((1, 5, 7), (1, 3, 2), 3), ((5, 3, 1), (2, 4, 1), 1)]


def places(sides):
    return list(itertools.product(*map(range, sides)))


def own_cell(place, grid, clusters):
    """Nearest upsampling in float32, axis by axis."""
    cell = []
    for at, size, count in zip(place, grid, clusters, strict=True):
        step = np.float32(np.float32(count) / np.float32(size))
        cell.append(min(int(np.floor(np.float32(np.float32(at) * step))), count - 1))
    return tuple(cell)


def number(place, sides):
    return (place[0] * sides[1] + place[1]) * sides[2] + place[2]


@pytest.mark.parametrize("grid, clusters, window", CASES)
def test_cell_edges_are_the_pairs_within_the_cube(grid, clusters, window):
    token, cluster, by_cluster = cell_edges(grid, clusters, window)
    expected, labels = [], []
    for n, place in enumerate(places(grid)):
        own = own_cell(place, grid, clusters)
        labels.append(number(own, clusters))
        for m, cell in enumerate(places(clusters)):
            if max(abs(a - b) for a, b in zip(own, cell, strict=True)) <= window // 2:
                expected.append((n, m))
    assert label_map(grid, clusters).tolist() == labels
    assert list(zip(token.tolist(), cluster.tolist(), strict=True)) == expected
    assert by_cluster.tolist() == sorted(range(len(expected)), key=lambda e: expected[e][::-1])


def test_cell_edges_of_the_published_video_are_68_a_token():
    assert round(cell_edges((8, 12, 12), (8, 6, 6), 5)[0].numel() / (8 * 12 * 12)) == 68  # as the specification says


@pytest.mark.parametrize("side", [1, 2, 3, 4])
@pytest.mark.parametrize("grid, clusters, window", CASES)
def test_cell_tiles_hold_every_edge_once(grid, clusters, window, side):
    token, cluster, _ = cell_edges(grid, clusters, window)
    tiles = cell_tiles(grid, clusters, window, side=side)
    count = math.prod(clusters)
    pair = tiles.token[:, :, None] * count + tiles.candidate[:, None]
    assert torch.equal(pair.flatten()[tiles.slot], token * count + cluster)
    free = (tiles.barred == 0) & (tiles.real > 0)
    assert int(free.sum()) == token.numel() and free.flatten()[tiles.slot].all()
    assert tiles.token[tiles.real[..., 0] > 0].sort().values.tolist() == list(range(math.prod(grid)))
    assert (tiles.candidate.flatten()[tiles.source].diff() >= 0).all()
    assert tile_pairs(grid, clusters, window, side=side) == tiles.barred.numel()


@pytest.mark.parametrize("grid, clusters, window", CASES)
def test_pool_matrices_and_edges_are_adaptive_average_pooling(grid, clusters, window):
    x = torch.randn(math.prod(grid), 3, dtype=torch.float64)
    volume = x.T.reshape(1, 3, *grid)
    expected = torch.nn.functional.adaptive_avg_pool3d(volume, clusters).flatten(2)[0].T
    t, h, w = pool_matrices(grid, clusters, dtype=torch.float64)
    made = torch.einsum("at,bh,cw,thwx->abcx", t, h, w, x.view(*grid, 3)).reshape(-1, 3)
    torch.testing.assert_close(made, expected)
    token, cluster = pool_edges(grid, clusters)
    count = torch.bincount(cluster, minlength=math.prod(clusters))
    mean = torch.zeros_like(expected).index_add_(0, cluster, x[token]) / count[:, None]
    torch.testing.assert_close(mean, expected)


@pytest.mark.parametrize("neighbors, axes", [(6, 1), (18, 2), (26, 3), (None, 3)])
@pytest.mark.parametrize("grid", [(2, 3, 4), (1, 3, 3), (3, 1, 1), (4, 2, 1)])
def test_grid_graph_equals_looking_at_every_pair(grid, neighbors, axes):
    at = places(grid)
    expected = []
    for target, source in itertools.product(range(len(at)), repeat=2):
        apart = [abs(a - b) for a, b in zip(at[target], at[source], strict=True)]
        if max(apart) == 1 and sum(apart) <= axes:
            expected.append([source, target])
    assert grid_graph(grid, neighbors).T.tolist() == expected


def test_grid_graph_does_not_join_the_borders_of_frames():
    below, apart = grid_graph((4, 3)), grid_graph((2, 2, 3))
    assert [3, 8] in below.T.tolist() or [6, 3] in below.T.tolist()  # last row of one frame, first of the next
    video = apart.T.tolist()
    assert [3, 9] in video  # the same patch a frame later
    for source, target in video:
        (y0, x0), (y1, x1) = divmod(source % 6, 3), divmod(target % 6, 3)
        assert max(abs(y0 - y1), abs(x0 - x1)) <= 1


def test_grid_graph_of_a_batch_shifts_each_video():
    one = grid_graph((2, 2, 2), 6)
    assert torch.equal(grid_graph((2, 2, 2), 6, batch_size=3), torch.cat([one, one + 8, one + 16], dim=1))


@pytest.mark.parametrize("grid", [(3, 4, 5), (6, 2, 2), (1, 4, 4), (7, 1, 1), (2, 9, 1)])
def test_window_graph_equals_sorting_all_patches(grid):
    at = places(grid)
    for lam in (1, 6, 7, 20, len(at) - 1, 500):
        if lam == 500 or lam < len(at):
            expected = []
            for p in at:
                key = [(sum((a - b) ** 2 for a, b in zip(p, q, strict=True)), i) for i, q in enumerate(at) if q != p]
                expected.append([i for _, i in sorted(key)][:lam])
            assert window_graph(grid, lam).tolist() == expected


@pytest.mark.parametrize("grid, lam", [((5, 6, 7), 26), ((3, 9, 2), 10), ((1, 9, 9), 8)])
def test_window_tiles_hold_the_window_graph(grid, lam):
    window, tiles = window_graph(grid, lam), window_tiles(grid, lam, tile=3)
    rows = tiles.candidates[torch.arange(tiles.local.size(0))[:, None, None], tiles.local]
    assert torch.equal(rows.flatten(0, 1)[tiles.slot], window)
    assert torch.equal(tiles.queries.flatten()[tiles.slot], torch.arange(math.prod(grid)))


def test_one_frame_is_the_plane():
    for plane, cells in [((6, 9), (4, 5)), ((5, 5), (2, 3)), ((40, 40), (28, 28))]:
        one, small = (1, *plane), (1, *cells)
        assert torch.equal(label_map(one, small), label_map(plane, cells))
        tables = zip(cell_edges(one, small, 3), cell_edges(plane, cells, 3), strict=True)
        assert all(torch.equal(a, b) for a, b in tables)
        tables = zip(pool_matrices(one, small)[1:], pool_matrices(plane, cells), strict=True)
        assert all(torch.equal(a, b) for a, b in tables)
        tiles = zip(cell_tiles(one, small, 3), cell_tiles(plane, cells, 3), strict=True)
        assert all(torch.equal(a, b) for a, b in tiles)
        assert torch.equal(window_graph(one, 11), window_graph(plane, 11))
        tiles = zip(window_tiles(one, 11), window_tiles(plane, 11), strict=True)
        assert all(torch.equal(a, b) for a, b in tiles)
        assert torch.equal(grid_graph(one), grid_graph(plane)) and torch.equal(grid_graph(one, 6), grid_graph(plane, 4))
        assert torch.equal(grid_positions(one)[:, 1:], grid_positions(plane))


def test_grid_positions_are_time_row_column():
    pos = grid_positions((2, 1, 2))
    assert pos.tolist() == [[0.5, 0.5, 0.5], [0.5, 0.5, 1.5], [1.5, 0.5, 0.5], [1.5, 0.5, 1.5]]


def test_sides_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"Expected neighbors to be 6, 18 or 26 in a video \(got 8\)"):
        grid_graph((2, 3, 3), 8)
    with pytest.raises(TypeError, match=r"Expected grid as \(H, W\), or \(T, H, W\) for a video \(got \(2, 3"):
        grid_graph((2, 3, 3, 3))
    with pytest.raises(ValueError, match=r"Expected a grid of at least 1 x 1 x 1 \(got 0 x 3 x 3\)"):
        window_graph((0, 3, 3), 2)
    with pytest.raises(ValueError, match=r"Expected as many sides in clusters as in the grid \(got clusters=\(2, 2\)"):
        cell_edges((2, 4, 4), (2, 2), 3)
