"""Token graphs of videos: grids (T, H, W), positions (t, y, x)."""

import itertools

import pytest
import torch
from torch_geometric.data import Batch

import tokengraph as tg
from tokengraph import TokenGraph, grid_graph, window_graph
from tokengraph.edges import grid_positions
from tokengraph.select.grid_pool import grid_pool

GRID = (4, 3, 6)


def video(images=2, grid=GRID, channels=8, seed=0):
    count = grid[0] * grid[1] * grid[2]
    x = torch.randn(images, 1 + count, channels, generator=torch.Generator().manual_seed(seed))
    return TokenGraph.from_tokens(x, grid=grid, num_prefix=1)


def test_a_video_has_positions_in_time_and_space():
    graph = video()
    assert graph.grid == GRID and graph.grids == [GRID, GRID]
    assert torch.equal(graph.pos, grid_positions(GRID).repeat(2, 1))
    assert "grid=(4, 3, 6)" in repr(graph)


def test_edges_of_a_video_are_those_of_its_grid():
    graph = video()
    assert torch.equal(graph.connect_grid().edge_index, grid_graph(GRID, 26, batch_size=2))
    assert torch.equal(graph.connect_grid(6).edge_index, grid_graph(GRID, 6, batch_size=2))
    near = graph.connect_window(7).edge_index[0].view(2, 72, 7)
    assert torch.equal(near[0], window_graph(GRID, 7)) and torch.equal(near[1] - 72, near[0])
    image = TokenGraph.from_tokens(torch.randn(1, 12, 2), grid=(3, 4))
    assert torch.equal(image.connect_grid().edge_index, grid_graph((3, 4), 8))


def test_videos_split_and_batch_again():
    graph = video().connect_grid(6)
    parts = graph.split()
    assert [p.grids for p in parts] == [[GRID], [GRID]] and parts[1].pos.shape == (72, 3)
    again = Batch.from_data_list(parts)
    assert torch.equal(again.edge_index, graph.edge_index) and torch.equal(again.pos, graph.pos)


def test_videos_of_other_lengths_stand_in_one_graph():
    grids = [(2, 3, 4), (5, 2, 3)]
    x = [torch.randn(g[0] * g[1] * g[2], 8) for g in grids]
    graph = TokenGraph.from_tokens(x, grid=grids)
    assert graph.grids == grids and graph.connect_grid().edge_index.max() == 53
    for name in ("dpc-knn", "ailurus", "expedite", "grid-pool", "tome"):
        both = tg.coarsen(graph, name, 0.5)
        alone = [tg.coarsen(TokenGraph.from_tokens(t[None], grid=g), name, 0.5) for t, g in zip(x, grids, strict=True)]
        torch.testing.assert_close(both.graph.x, torch.cat([a.graph.x for a in alone]))


def test_images_and_videos_do_not_mix():
    with pytest.raises(ValueError, match=r"Expected grids of one kind, images or videos .* one frame: \(1, H, W\)"):
        TokenGraph.from_tokens([torch.randn(4, 2), torch.randn(8, 2)], grid=[(2, 2), (2, 2, 2)])


@pytest.mark.parametrize("name", ["expedite", "ailurus", "tome", "dpc-knn", "grid-pool", "random", "token-migration"])
def test_coarsening_a_video_keeps_what_it_stands_for(name):
    graph = video()
    coarse, assignment = tg.coarsen(graph.connect_grid(), name, 0.5)
    assert coarse.grid == GRID and coarse.pos.shape == (coarse.num_nodes, 3)
    assert assignment.lift(coarse.x).shape == graph.x.shape
    inside = coarse.pos[coarse.size > 0]
    assert (inside > 0).all() and (inside < torch.tensor(GRID)).all()
    if name not in ("random", "token-migration"):
        torch.testing.assert_close(coarse.size.sum(), torch.tensor(144.0))
        mean = (coarse.pos * coarse.size[:, None]).sum(0) / coarse.size.sum()
        torch.testing.assert_close(mean, graph.pos.mean(0))


def test_coarsening_again_needs_no_grid_of_its_own():
    levels = tg.hierarchy(video(), "dpc-knn", [0.5, 0.5])
    assert levels.lift(levels.graphs[-1].pos).shape == (144, 3)


def test_strategies_of_the_plane_say_so():
    with pytest.raises(ValueError, match=r"Expected grid as \(H, W\) for graph='mixed' .* graph='semantic' for videos"):
        tg.coarsen(video(), "gtp", 0.5)


def test_what_is_of_the_plane_names_the_way_for_frames():
    with pytest.raises(TypeError, match=r"Expected grid as \(H, W\) \(got \(2, 2, 2\)\)\. This works on images alone"):
        tg.errors.check_grid((2, 2, 2), 8)
    with pytest.raises(ValueError, match=r"Expected a grid of N=9 patches \(got 2 x 2 x 2 = 8\)"):
        TokenGraph.from_tokens(torch.randn(1, 9, 2), grid=(2, 2, 2))


@pytest.mark.parametrize("grid, cells", [((8, 6, 6), (4, 3, 3)), ((4, 4, 4), (2, 2, 2)), ((2, 9, 9), (2, 9, 9))])
def test_grid_pool_of_a_video_is_average_pooling_where_cells_divide_the_grid(grid, cells):
    keep = cells[0] * cells[1] * cells[2]
    a = grid_pool(grid_positions(grid)[None], keep, grid)
    expected = []
    for place in itertools.product(*map(range, grid)):
        t, y, x = (p * c // s for p, c, s in zip(place, cells, grid, strict=True))
        expected.append((t * cells[1] + y) * cells[2] + x)
    assert a.cluster.tolist() == expected


@pytest.mark.parametrize("keep", [1, 2, 5, 7, 23, 89, 90])
def test_grid_pool_of_a_video_gives_cells_of_nearly_equal_counts(keep):
    pos = torch.rand(2, 90, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([5.0, 3.0, 6.0])
    count = torch.bincount(grid_pool(pos, keep, (5, 3, 6)).cluster, minlength=2 * keep)
    assert count.min() >= 90 // keep - 1 and count.min() >= 1 and count.max() <= -(-90 // keep) + 1


def test_grid_pool_of_a_video_does_not_depend_on_the_order_of_tokens():
    pos = grid_positions(GRID)[None]
    order = torch.randperm(72, generator=torch.Generator().manual_seed(1))
    assert torch.equal(grid_pool(pos[:, order], 10, GRID).cluster, grid_pool(pos, 10, GRID).cluster[order])


def test_grid_pool_of_ragged_videos_is_that_of_each():
    pos = torch.zeros(2, 24, 3)
    pos[0], pos[1, :12] = grid_positions((2, 3, 4)), grid_positions((2, 2, 3))
    mask = torch.arange(24) < torch.tensor([[24], [12]])
    a = grid_pool(pos, [6, 4], (2, 3, 4), mask=mask)
    assert a.cluster[:24].tolist() == grid_pool(pos[:1], 6, (2, 3, 4)).cluster.tolist()
    with pytest.raises(ValueError, match=r"Expected pos of shape \[B, N, 2\] for grid=\(3, 4\) \(got \[2, 24, 3\]\)"):
        grid_pool(pos, 6, (3, 4))
