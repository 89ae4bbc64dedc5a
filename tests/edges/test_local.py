"""k nearest neighbours within windows of the grid."""

import pytest
import torch
from torch.testing import assert_close

import tokengraph as tg


def by_hand(x, grid, k, window, cosine):
    """Neighbours of one image from all pairs; ties go to the nearer patch."""
    near = tg.window_graph(grid, window)
    pairs = torch.cdist(x.double(), x.double())
    if cosine:
        unit = torch.nn.functional.normalize(x.double(), dim=1)
        pairs = 1 - unit @ unit.T
    order = pairs.gather(1, near).argsort(dim=1, stable=True)[:, :k]
    return near.gather(1, order), pairs.gather(1, near).gather(1, order)


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("grid", [(5, 7), (3, 4, 4)])
def test_local_knn_graph_is_the_nearest_of_each_window(grid, cosine):
    tokens = torch.Size(grid).numel()
    x = torch.randn(2, tokens, 6, generator=torch.Generator().manual_seed(0))
    edges, weight = tg.local_knn_graph(x, grid, 4, 12, cosine=cosine)
    assert torch.equal(edges[1], torch.arange(2 * tokens).repeat_interleave(4))
    for b in range(2):
        near, distance = by_hand(x[b], grid, 4, 12, cosine)
        assert torch.equal(edges[0].view(2, tokens, 4)[b] - b * tokens, near)
        assert_close(weight.view(2, tokens, 4)[b].double(), 1 - distance if cosine else distance, atol=1e-5, rtol=1e-5)


def test_local_knn_graph_with_a_window_of_the_whole_grid_is_knn_graph():
    x = torch.randn(2, 20, 6)
    ours, theirs = tg.local_knn_graph(x, (4, 5), 3, 19), tg.knn_graph(x, 3)
    assert torch.equal(ours[0], theirs[0])
    assert_close(ours[1], theirs[1])


def test_local_knn_graph_gives_ties_to_the_nearer_patch():
    assert tg.local_knn_graph(torch.ones(1, 5, 2), (1, 5), 2, 4)[0][0].tolist() == [1, 2, 0, 2, 1, 3, 2, 4, 3, 2]


def test_local_knn_graph_gives_zero_vectors_the_cosines_of_knn_graph():
    x = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]]])
    ours, theirs = tg.local_knn_graph(x, (1, 3), 2, 2, cosine=True), tg.knn_graph(x, 2, cosine=True)
    assert_close(ours[1].view(3, 2).sort(dim=1)[0], theirs[1].view(3, 2).sort(dim=1)[0])


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"k": 9, "window": 8}, r"Expected k of at most 8 patches in a window \(got k=9\)"),
        ({"k": 0}, r"Expected k >= 1 \(got k=0\)"),
        ({"k": 2, "grid": (3, 3)}, "Expected a grid of N=12 patches"),
    ],
)
def test_local_knn_graph_refuses_what_does_not_fit(how, words):
    with pytest.raises(ValueError, match=words):
        tg.local_knn_graph(**{"x": torch.randn(1, 12, 4), "grid": (3, 4)} | how)


def test_connect_local_joins_images_of_their_own_grids():
    x = [torch.randn(12, 4), torch.randn(6, 4)]
    graph = tg.TokenGraph.from_tokens(x, [(3, 4), (2, 3)]).connect_local(2, 5)
    alone = [tg.local_knn_graph(rows[None], grid, 2, 5) for rows, grid in zip(x, ((3, 4), (2, 3)), strict=True)]
    assert torch.equal(graph.edge_index, torch.cat([alone[0][0], alone[1][0] + 12], dim=1))
    assert_close(graph.edge_weight, torch.cat([alone[0][1], alone[1][1]]))


def test_dpc_knn_with_a_window_of_the_whole_grid_is_dpc_knn():
    x = torch.randn(2, 30, 8)
    near = tg.dpc_knn(x, 7, grid=(5, 6), window=29)
    assert torch.equal(near.cluster, tg.dpc_knn(x, 7).cluster)
    with pytest.raises(ValueError, match=r"Expected the grid of the tokens for a window \(got none\)"):
        tg.dpc_knn(x, 7, window=29)
    with pytest.raises(ValueError, match="Expected one budget, and no mask"):
        tg.dpc_knn(x, [7, 6], grid=(5, 6), window=29)


def test_gtp_on_a_local_graph_of_the_whole_grid_is_semantic():
    x = torch.randn(2, 20, 8)
    local = tg.propagation_graph(x, (4, 5), graph="local", neighbors=3, window=19)
    whole = tg.propagation_graph(x, (4, 5), graph="semantic", neighbors=3)
    for ours, theirs in zip(local.edges(), whole.edges(), strict=True):
        assert_close(ours, theirs)
    with pytest.raises(ValueError, match="Expected a window of at least neighbors=8 patches"):
        tg.propagation_graph(x, (4, 5), graph="local", window=5)


def test_local_graphs_of_no_images_have_no_edges():
    edges, weight = tg.local_knn_graph(torch.zeros(0, 9, 4), (3, 3), 2, window=4)
    assert edges.shape == (2, 0) and weight.shape == (0,)
    assert tg.dpc_knn(torch.zeros(0, 9, 4), 3, grid=(3, 3), window=4).num_clusters == 0
