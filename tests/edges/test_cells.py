"""Cells over the patch grid: labels, candidate edges, pooling, tiles."""

import pytest
import torch
import torch.nn.functional as F

from tokengraph.edges.cells import cell_edges, cell_tiles, label_map, pool_edges, pool_matrices, tile_pairs

CASES = [((12, 20), (6, 10), 3), ((15, 13), (6, 5), 5), ((5, 4), (9, 2), 3), ((6, 6), (1, 1), 5), ((1, 7), (1, 3), 1)]


def test_label_map_is_the_nearest_cell():
    assert label_map((4, 4), (2, 2)).tolist() == [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]


def test_label_map_is_nearest_upsampling_for_all_sizes_up_to_128():
    for size in range(1, 129):
        for cells in range(1, size + 1):
            theirs = F.interpolate(torch.arange(cells).float()[None, None], size=size, mode="nearest")[0, 0].long()
            assert torch.equal(label_map((size, 1), (cells, 1)), theirs)


def test_label_map_differs_from_whole_number_division_where_float32_rounds():
    rows = label_map((44, 1), (26, 1))
    assert (rows != torch.arange(44) * 26 // 44).sum() == 1


@pytest.mark.parametrize(("grid", "clusters", "window"), CASES)
def test_cell_edges_are_the_pairs_within_the_square(grid, clusters, window):
    token, cluster, by_cluster = cell_edges(grid, clusters, window)
    label, cells = label_map(grid, clusters), torch.arange(clusters[0] * clusters[1])
    rows = (label[:, None] // clusters[1] - cells // clusters[1]).abs()
    columns = (label[:, None] % clusters[1] - cells % clusters[1]).abs()
    expected = (torch.maximum(rows, columns) <= window // 2).nonzero()
    assert torch.equal(torch.stack([token, cluster], dim=1), expected)
    assert torch.equal(cluster[by_cluster], cluster.sort(stable=True).values)
    same = cluster[by_cluster].diff() == 0
    assert (token[by_cluster].diff()[same] > 0).all()


@pytest.mark.parametrize(
    ("grid", "clusters", "window", "edges"),
    [
        ((32, 32), (16, 16), 5, 21904),
        ((40, 40), (28, 28), 5, 36864),
        ((48, 48), (32, 32), 5, 53361),
        ((64, 64), (28, 28), 5, 93636),
        ((12, 12), (8, 8), 7, 4356),
        ((14, 14), (9, 9), 5, 3600),
    ],
)
def test_cell_edges_are_as_many_as_the_closed_form_says(grid, clusters, window, edges):
    assert cell_edges(grid, clusters, window)[0].numel() == edges


@pytest.mark.parametrize(("grid", "clusters", "window"), CASES)
@pytest.mark.parametrize("side", [1, 2, 4, 9])
def test_cell_tiles_hold_every_edge_once(grid, clusters, window, side):
    token, cluster, _ = cell_edges(grid, clusters, window)
    tiles = cell_tiles(grid, clusters, window, side=side)
    _, patches, cells = tiles.barred.shape
    tile = tiles.slot // (patches * cells)
    assert torch.equal(tiles.token[tile, tiles.slot // cells % patches], token)
    assert torch.equal(tiles.candidate[tile, tiles.slot % cells], cluster)
    open_to_real = (tiles.barred == 0) & (tiles.real > 0)
    assert int(open_to_real.sum()) == token.numel()
    assert int(tiles.real.sum()) == grid[0] * grid[1]
    assert (tiles.barred.amax(dim=2) == 0).all()  # no row is barred as a whole: its softmax would be NaN


@pytest.mark.parametrize(("grid", "clusters", "window"), CASES)
def test_cell_tiles_know_where_each_cell_lies(grid, clusters, window):
    tiles = cell_tiles(grid, clusters, window)
    found = tiles.candidate.flatten()[tiles.source]
    assert (found.diff() >= 0).all()
    assert tiles.source.unique().numel() == tiles.source.numel()
    _, patches, cells = tiles.barred.shape
    used = torch.zeros(tiles.candidate.numel(), dtype=torch.bool)
    used[tiles.slot // (patches * cells) * cells + tiles.slot % cells] = True
    assert torch.isin(used.nonzero().flatten(), tiles.source).all()


def test_tile_pairs_are_those_of_the_table_in_the_specification():
    assert tile_pairs((40, 40), (28, 28), 5) == 49 * 36 * 64
    assert tile_pairs((32, 32), (16, 16), 5) / (32 * 32 * 16 * 16) == 0.25


@pytest.mark.parametrize(("grid", "clusters"), [(g, c) for g, c, _ in CASES])
def test_pool_matrices_and_edges_are_adaptive_average_pooling(grid, clusters):
    x = torch.randn(1, 3, *grid, dtype=torch.float64)
    rows, columns = pool_matrices(grid, clusters, dtype=torch.float64)
    expected = F.adaptive_avg_pool2d(x, clusters)
    torch.testing.assert_close(rows @ x @ columns.T, expected)
    token, cluster = pool_edges(grid, clusters)
    count = clusters[0] * clusters[1]
    total = torch.zeros(count, 3, dtype=torch.float64).index_add_(0, cluster, x[0].flatten(1).T[token])
    mean = total / torch.bincount(cluster, minlength=count)[:, None]
    torch.testing.assert_close(mean, expected[0].flatten(1).T)


def test_cell_tables_refuse_what_makes_no_sense():
    with pytest.raises(ValueError, match=r"Expected an odd window \(got window=4\)"):
        cell_edges((4, 4), (2, 2), 4)
    with pytest.raises(ValueError, match="Expected h >= 1"):
        label_map((4, 4), (0, 2))
    with pytest.raises(TypeError, match="Expected clusters as two ints"):
        label_map((4, 4), 4)
