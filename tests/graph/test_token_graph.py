import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch_geometric.transforms as T
from torch.testing import assert_close
from torch_geometric.data import Batch
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GCNConv, SAGEConv, global_mean_pool
from torch_geometric.utils import contains_self_loops, is_undirected, to_networkx

import tokengraph
from tokengraph import TokenGraph, grid_graph, knn_graph, window_graph


def image(height: int = 3, width: int = 4, num_prefix: int = 1, seed: int = 0) -> TokenGraph:
    """A single image with four channels."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(1, num_prefix + height * width, 4, generator=generator)
    return TokenGraph.from_tokens(tokens, (height, width), num_prefix=num_prefix)


def ragged(*grids: tuple[int, int]) -> TokenGraph:
    sets = [torch.randn(h * w, 4) for h, w in grids]
    return TokenGraph.from_tokens(sets, grids)


def images_of(graph: TokenGraph) -> torch.Tensor:
    """The image at either end of each edge."""
    return graph.batch[graph.edge_index]


# from_tokens and back


def test_from_tokens_lays_images_one_after_another():
    graph = TokenGraph.from_tokens(torch.arange(24.0).view(2, 6, 2), (2, 3))
    assert graph.x.tolist() == torch.arange(24.0).view(12, 2).tolist()
    assert graph.batch.tolist() == [0] * 6 + [1] * 6 and graph.ptr.tolist() == [0, 6, 12]
    assert graph.size.tolist() == [1.0] * 12
    assert (graph.num_images, graph.counts, graph.grids) == (2, [6, 6], [(2, 3), (2, 3)])


def test_from_tokens_centres_the_first_patch_at_one_half():
    graph = TokenGraph.from_tokens(torch.zeros(1, 6, 2), (2, 3))
    assert graph.pos.tolist() == [[0.5, 0.5], [0.5, 1.5], [0.5, 2.5], [1.5, 0.5], [1.5, 1.5], [1.5, 2.5]]


@pytest.mark.parametrize("num_prefix", [0, 1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_to_tokens_undoes_from_tokens(num_prefix, dtype):
    tokens = torch.randn(3, num_prefix + 6, 4, dtype=dtype)
    assert torch.equal(TokenGraph.from_tokens(tokens, (2, 3), num_prefix=num_prefix).to_tokens(), tokens)


def test_from_tokens_keeps_sizes_and_positions_in_float32():
    graph = TokenGraph.from_tokens(torch.zeros(1, 6, 2, dtype=torch.float16), (2, 3))
    assert graph.size.dtype == graph.pos.dtype == torch.float32 and graph.x.dtype == torch.float16


def test_from_tokens_leaves_gradients_on():
    tokens = torch.randn(2, 1 + 6, 4, requires_grad=True)
    TokenGraph.from_tokens(tokens, (2, 3), num_prefix=1).to_tokens().sum().backward()
    assert torch.equal(tokens.grad, torch.ones_like(tokens))


def test_from_tokens_without_a_grid_has_no_positions():
    graph = TokenGraph.from_tokens(torch.zeros(2, 5, 3))
    assert "pos" not in graph and graph.grids is None


def test_from_tokens_takes_a_list_of_different_images():
    sets = [torch.randn(1 + 6, 4), torch.randn(1 + 2, 4), torch.randn(1, 4)]
    graph = TokenGraph.from_tokens(sets, [(2, 3), (1, 2), (0, 0)], num_prefix=1)
    assert graph.counts == [6, 2, 0] and graph.batch.tolist() == [0] * 6 + [1] * 2
    assert graph.grid == [(2, 3), (1, 2), (0, 0)]
    assert torch.equal(graph.x, torch.cat([s[1:] for s in sets]))
    assert torch.equal(graph.prefix[:, 0], torch.stack([s[0] for s in sets]))


def test_from_tokens_takes_grids_of_any_integers():
    graph = TokenGraph.from_tokens(torch.zeros(2, 6, 1), [2, 3])
    assert graph.grids == [(2, 3), (2, 3)]
    assert TokenGraph.from_tokens(torch.zeros(1, 6, 1), tuple(np.array([2, 3]))).grid == (2, 3)


def test_from_tokens_of_equal_images_in_a_list_equals_the_tensor():
    tokens = torch.randn(2, 7, 4)
    listed = TokenGraph.from_tokens(list(tokens), (2, 3), num_prefix=1)
    assert listed.grid == (2, 3) and torch.equal(listed.to_tokens(), tokens)


def test_to_padded_puts_zeros_behind_and_marks_them():
    sets = [torch.randn(1 + 2, 4), torch.randn(1 + 1, 4)]
    tokens, mask = TokenGraph.from_tokens(sets, num_prefix=1).to_padded()
    assert mask.tolist() == [[True, True, True], [True, True, False]]
    assert torch.equal(tokens[0], sets[0]) and torch.equal(tokens[1, :2], sets[1])
    assert tokens[1, 2].tolist() == [0.0] * 4


def test_to_tokens_refuses_ragged_images():
    with pytest.raises(ValueError, match=r"as many tokens in each image \(got \[6, 2\]\)\. Use to_padded\(\)"):
        ragged((2, 3), (1, 2)).to_tokens()


@pytest.mark.parametrize(
    ("tokens", "grid", "num_prefix", "message"),
    [
        (torch.zeros(2, 7, 4), (2, 3), 0, r"a grid of N=7 patches \(got 2 x 3 = 6\)\. .*num_prefix"),
        (torch.zeros(2, 7, 4), (-2, -3), 1, r"a grid of N=6 patches \(got -2 x -3 = 6\)"),
        (torch.zeros(7, 4), None, 0, r"tokens of shape \[B, N, C\] \(got \[7, 4\]\)"),
        ([torch.zeros(2, 7, 4)], None, 0, r"tokens of shape \[M, C\] \(got \[2, 7, 4\]\)"),
        (torch.zeros(0, 7, 4), None, 0, r"at least one image \(got none\)"),
        ([], None, 0, r"at least one image \(got none\)"),
        (torch.zeros(2, 7, 4), None, 8, r"0 <= num_prefix <= tokens per image \(got num_prefix=8\)"),
        (torch.zeros(2, 7, 4), None, -1, r"0 <= num_prefix <= tokens per image \(got num_prefix=-1\)"),
        ([torch.zeros(6, 4), torch.zeros(6, 5)], None, 0, r"one channel count \(got \[4, 5\]\)"),
        ([torch.zeros(6, 4), torch.zeros(2, 4)], [(2, 3)], 0, r"one grid per image, B=2 \(got 1\)"),
        ([torch.zeros(6, 4), torch.zeros(2, 4)], (2, 3), 0, r"a grid of N=2 patches \(got 2 x 3 = 6\)"),
    ],
)
def test_from_tokens_refuses_shapes_that_do_not_fit(tokens, grid, num_prefix, message):
    with pytest.raises(ValueError, match=message):
        TokenGraph.from_tokens(tokens, grid, num_prefix=num_prefix)


@pytest.mark.parametrize(
    ("tokens", "grid", "message"),
    [
        (torch.zeros(2, 6, 4, dtype=torch.long), None, r"floating-point tokens \(got torch.int64\)"),
        ([[1.0, 2.0]], None, r"tokens to be a Tensor \(got list\)"),
        (torch.zeros(2, 6, 4), 6, r"grid as \(H, W\), or \(T, H, W\) for a video \(got 6\)"),
        (torch.zeros(2, 6, 4), (1, 1, 2, 3), r"grid as \(H, W\), or \(T, H, W\) .* \(got \(1, 1, 2, 3\)\)"),
    ],
)
def test_from_tokens_refuses_other_kinds(tokens, grid, message):
    with pytest.raises(TypeError, match=message):
        TokenGraph.from_tokens(tokens, grid)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(("place", "name"), [(0, "prefix tokens"), (3, "tokens")])
def test_from_tokens_refuses_what_is_not_finite(value, place, name):
    tokens = torch.zeros(2, 7, 4)
    tokens[1, place, 2] = value
    with pytest.raises(ValueError, match=rf"Expected finite {name} \(got NaN or infinity in 1 rows\)"):
        TokenGraph.from_tokens(tokens, (2, 3), num_prefix=1)
    assert TokenGraph.from_tokens(tokens, (2, 3), num_prefix=1, check=False).num_nodes == 12


def test_from_tokens_takes_finite_tokens_whose_sum_overflows():
    graph = TokenGraph.from_tokens(torch.full((1, 6, 4), 3e38))
    assert graph.x.isfinite().all()


# PyG's batches


def test_batch_of_single_images_equals_the_graph_of_all():
    tokens = torch.randn(3, 1 + 12, 4)
    whole = TokenGraph.from_tokens(tokens, (3, 4), num_prefix=1).connect_grid()
    single = [TokenGraph.from_tokens(t[None], (3, 4), num_prefix=1).connect_grid() for t in tokens]
    batch = Batch.from_data_list(single)
    for key in ("x", "pos", "batch", "ptr", "edge_index", "edge_weight", "prefix"):
        assert torch.equal(batch[key], whole[key]), key
    assert torch.equal(batch.size, whole.size)
    assert batch.grids == whole.grids and batch.counts == [12, 12, 12]
    assert torch.equal(batch.to_tokens(), tokens)


def test_batch_gives_single_images_back():
    singles = [image(3, 4).connect_grid(), image(2, 3, seed=1).connect_knn(2)]
    batch = Batch.from_data_list(singles)
    assert batch.grids == [(3, 4), (2, 3)] and batch.counts == [12, 6]
    for ours, theirs in zip(batch.to_data_list(), singles, strict=True):
        assert type(ours) is TokenGraph and ours.grid == theirs.grid
        for key in ("x", "pos", "batch", "ptr", "edge_index", "edge_weight", "prefix"):
            assert torch.equal(getattr(ours, key), getattr(theirs, key)), key
        assert torch.equal(ours.size, theirs.size)


def test_image_taken_from_a_batch_works_like_any_other():
    taken = Batch.from_data_list([image(3, 4), image(2, 3, seed=1)]).get_example(1)
    assert (taken.num_images, taken.counts, taken.ptr.tolist()) == (1, [6], [0, 6])
    assert torch.equal(taken.connect_grid(4).edge_index, grid_graph((2, 3), 4))
    assert len(taken.split()) == 1 and taken.to_tokens().shape == (1, 7, 4)
    assert Batch.from_data_list([taken, taken]).counts == [6, 6]


def test_batch_takes_an_empty_image():
    empty = TokenGraph.from_tokens(torch.zeros(1, 0, 4), (0, 0))
    batch = Batch.from_data_list([empty, image(2, 3, num_prefix=0), empty])
    assert batch.counts == [0, 6, 0] and batch.batch.tolist() == [1] * 6
    assert [g.counts for g in batch.to_data_list()] == [[0], [6], [0]]


def test_batch_refuses_graphs_of_several_images():
    several = TokenGraph.from_tokens(torch.zeros(2, 6, 4), (2, 3))
    with pytest.raises(ValueError, match=r"graphs of one image to batch \(got one of 2\)\. Use graph.split\(\) first"):
        Batch.from_data_list([several, several])
    assert Batch.from_data_list(several.split()).counts == [6, 6]


def test_data_loader_batches_single_images():
    loader = DataLoader([image(3, 4, seed=s).connect_knn(2) for s in range(5)], batch_size=2)
    sizes = [(batch.num_graphs, batch.num_images, batch.num_nodes, batch.num_edges) for batch in loader]
    assert sizes == [(2, 2, 24, 48), (2, 2, 24, 48), (1, 1, 12, 24)]


def test_split_undoes_itself_through_a_batch():
    graph = ragged((3, 4), (1, 2), (2, 2)).connect_grid()
    parts = graph.split()
    assert [p.counts for p in parts] == [[12], [2], [4]] and [p.grid for p in parts] == [(3, 4), (1, 2), (2, 2)]
    batch = Batch.from_data_list(parts)
    for key in ("x", "pos", "batch", "ptr", "edge_index", "edge_weight"):
        assert torch.equal(batch[key], graph[key]), key


def test_split_takes_edges_without_weights():
    graph = ragged((2, 2), (1, 2))
    graph.edge_index = torch.tensor([[0, 5], [3, 4]])
    first, second = graph.split()
    assert first.edge_index.tolist() == [[0], [3]] and second.edge_index.tolist() == [[1], [0]]
    assert second.edge_weight is None


def test_split_keeps_each_images_prefix():
    tokens = torch.randn(2, 2 + 6, 4)
    parts = TokenGraph.from_tokens(tokens, (2, 3), num_prefix=2).split()
    assert torch.equal(torch.cat([p.to_tokens() for p in parts]), tokens)


# edges


def test_connect_knn_equals_the_edges_of_each_image():
    graph = ragged((3, 4), (2, 3)).connect_knn(3)
    expected = [knn_graph(x, 3) for x in graph.x.split([12, 6])]
    assert torch.equal(graph.edge_index, torch.cat([expected[0][0], expected[1][0] + 12], dim=1))
    assert_close(graph.edge_weight, torch.cat([expected[0][1], expected[1][1]]))


@pytest.mark.parametrize(
    "connect", [lambda g: g.connect_knn(2), lambda g: g.connect_grid(4), lambda g: g.connect_window(3)]
)
def test_connect_never_crosses_images(connect):
    graph = connect(ragged((3, 4), (2, 3), (2, 2)))
    ends = images_of(graph)
    assert graph.num_edges > 0 and torch.equal(ends[0], ends[1])
    assert graph.edge_weight.shape == (graph.num_edges,)
    assert not contains_self_loops(graph.edge_index)


def test_connect_knn_passes_its_options_on():
    graph = TokenGraph.from_tokens(torch.tensor([[[1.0, 0.0], [5.0, 0.1], [0.0, 1.0]]]))
    assert graph.connect_knn(1).edge_index[0].tolist() == [2, 0, 0]
    assert graph.connect_knn(1, cosine=True).edge_index[0].tolist() == [1, 0, 1]
    with pytest.raises(ValueError, match=r"Expected backend to be one of .* \(got 'faiss'\)"):
        graph.connect_knn(1, backend="faiss")


def test_connect_knn_takes_an_empty_image_among_others():
    graph = TokenGraph.from_tokens([torch.randn(4, 2), torch.zeros(0, 2), torch.randn(3, 2)]).connect_knn(2)
    assert images_of(graph)[1].tolist() == [0] * 8 + [2] * 6


def test_connect_grid_equals_grid_graph():
    graph = TokenGraph.from_tokens(torch.zeros(2, 12, 1), (3, 4))
    for neighbors in (4, 8):
        assert torch.equal(graph.connect_grid(neighbors).edge_index, grid_graph((3, 4), neighbors, batch_size=2))
    assert graph.connect_grid(4).edge_weight.tolist() == [1.0] * 68


def test_connect_window_points_from_the_window_to_the_patch():
    graph = TokenGraph.from_tokens(torch.zeros(1, 12, 1), (3, 4)).connect_window(5)
    assert torch.equal(graph.edge_index[0].view(12, 5), window_graph((3, 4), 5))
    assert graph.edge_index[1].tolist() == [i for i in range(12) for _ in range(5)]


def test_connect_leaves_the_graph_itself_alone():
    graph = image()
    assert graph.connect_grid().num_edges == 58
    assert "edge_index" not in graph.keys()


def test_connect_replaces_edges_that_are_there():
    assert image().connect_grid().connect_knn(1).num_edges == 12


def test_connect_grid_writes_into_no_shared_table():
    image(num_prefix=0).connect_grid(4).edge_index.zero_()
    assert grid_graph((3, 4), 4).any()


def test_with_edges_counts_each_edge_once_by_default():
    graph = image().with_edges(torch.tensor([[0, 1], [1, 2]]))
    assert graph.edge_weight.tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match=r"edge_index of shape \[2, E\] \(got \[3, 2\]\)"):
        image().with_edges(torch.zeros(3, 2, dtype=torch.long))


def test_connect_grid_and_window_refuse_what_is_no_full_grid():
    for connect in ("connect_grid", "connect_window"):
        with pytest.raises(
            ValueError, match=r"Expected a graph with a grid \(got none\)\. Build it with grid=\(H, W\)"
        ):
            getattr(TokenGraph.from_tokens(torch.zeros(1, 4, 1)), connect)(4)
        with pytest.raises(ValueError, match=r"Expected a grid of N=5 patches \(got 3 x 4 = 12\)"):
            getattr(image().subgraph(torch.arange(5)), connect)(4)


def test_connect_knn_refuses_unsorted_images():
    graph = TokenGraph.from_tokens(torch.randn(2, 3, 4))
    graph.batch = torch.tensor([0, 1, 0, 1, 0, 1])
    with pytest.raises(
        ValueError, match=r"Expected a sorted batch vector \(got one that decreases\)\. Sort the tokens"
    ):
        graph.connect_knn(1)


# PyG's tools


@pytest.mark.parametrize("conv", [GCNConv, SAGEConv])
def test_convolution_of_a_batch_equals_each_image_alone(conv):
    layer = conv(4, 6)
    singles = [image(3, 4).connect_grid(), image(2, 3, seed=1).connect_grid()]
    batch = Batch.from_data_list(singles)
    together = layer(batch.x, batch.edge_index)
    assert together.abs().sum() > 0
    assert_close(together, torch.cat([layer(g.x, g.edge_index) for g in singles]))


def test_convolution_on_edge_weights_trains():
    graph, layer = image().connect_knn(3), GCNConv(4, 2)
    global_mean_pool(layer(graph.x, graph.edge_index, graph.edge_weight), graph.batch).sum().backward()
    assert layer.lin.weight.grad.any()


def test_to_networkx_has_the_nodes_edges_and_attributes():
    pytest.importorskip("networkx")
    graph = image(2, 3).connect_grid(4)
    exported = to_networkx(graph, node_attrs=["pos", "size"], edge_attrs=["edge_weight"], to_undirected=True)
    assert (exported.number_of_nodes(), exported.number_of_edges()) == (6, 7)
    assert exported.nodes[4] == {"pos": [1.5, 1.5], "size": 1.0} and exported.edges[0, 1]["edge_weight"] == 1.0


def test_to_undirected_makes_knn_edges_symmetric():
    graph = image().connect_knn(2)
    assert not is_undirected(graph.edge_index)
    both = T.ToUndirected()(graph)
    assert type(both) is TokenGraph and is_undirected(both.edge_index) and both.counts == [12]


def test_add_self_loops_adds_one_a_node():
    graph = T.AddSelfLoops(attr="edge_weight")(image().connect_grid(4))
    assert graph.num_edges == 34 + 12 and graph.edge_weight.tolist() == [1.0] * 46


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")  # torch's own, about PyG's sparse matrices
def test_random_walk_encoding_works_on_large_graphs():
    graph = T.AddRandomWalkPE(3)(TokenGraph.from_tokens(torch.zeros(1, 2025, 1), (45, 45)).connect_grid(4))
    assert_close(graph.random_walk_pe[0], torch.tensor([0.0, 1 / 3, 0.0]))


def test_subgraph_keeps_counts_right():
    graph = ragged((2, 3), (2, 2)).connect_grid(4)
    part = graph.subgraph(torch.tensor([1, 2, 3, 8, 9]))
    assert (part.counts, part.ptr.tolist(), part.num_images) == ([3, 2], [0, 3, 5], 2)
    assert [g.num_edges for g in part.split()] == [2, 2]
    assert graph.subgraph(torch.tensor([7])).counts == [0, 1]


def test_graph_built_field_by_field_is_one_image():
    graph = TokenGraph(x=torch.randn(5, 3), edge_index=torch.tensor([[0], [1]]))
    assert (graph.num_images, graph.counts, graph.ptr.tolist()) == (1, [5], [0, 5])
    assert graph.size.tolist() == [1.0] * 5 and graph.to_tokens().shape == (1, 5, 3)
    assert graph.connect_knn(2).num_edges == 10


def test_size_is_patches_and_called_is_the_adjacencys_shape():
    graph = image()
    assert graph.size.shape == (12,) and graph["size"].tolist() == [1.0] * 12
    assert graph.size() == (12, 12) and graph.size(0) == graph.size(1) == 12


def test_size_gives_ordinary_tensors_in_sums():
    graph = image()
    assert type(graph.size * 2) is type(graph["size"]) is type(torch.ones(1))
    graph.size = graph.size + 1
    assert graph["size"].tolist() == [2.0] * 12


def test_without_shares_tensors_and_leaves_fields_out():
    graph = image().connect_grid()
    other = graph.without("edge_index", "prefix")
    assert other.x is graph.x and "edge_index" not in other.keys() and "prefix" not in other.keys()
    other.x = torch.zeros(12, 4)
    assert graph.x.any() and "edge_index" in graph.keys()


def test_deepcopy_shares_nothing():
    graph = image()
    copied = copy.deepcopy(graph)
    copied.x.zero_()
    assert graph.x.any()


@pytest.mark.parametrize(
    "graph", [image().connect_knn(2), ragged((2, 3), (1, 2)).connect_grid()], ids=["one", "ragged"]
)
def test_graph_survives_pickle_and_save(graph, tmp_path):
    torch.save(graph, tmp_path / "graph.pt")
    for back in (pickle.loads(pickle.dumps(graph)), torch.load(tmp_path / "graph.pt", weights_only=False)):
        assert type(back) is TokenGraph and back.grids == graph.grids and sorted(back.keys()) == sorted(graph.keys())
        assert torch.equal(back.x, graph.x) and torch.equal(back.edge_index, graph.edge_index)
        assert torch.equal(back.size, graph.size)


def test_to_moves_every_tensor():
    graph = image().connect_grid().to("meta")
    assert {v.device.type for v in graph.to_dict().values() if isinstance(v, torch.Tensor)} == {"meta"}


def test_to_keeps_the_grid():
    for graph in (image(), ragged((2, 3), (1, 2)), Batch.from_data_list([image(), image(2, 3)])):
        moved = graph.without().to("cpu")
        assert moved.grid == graph.grid and torch.equal(
            moved.connect_grid().edge_index, graph.connect_grid().edge_index
        )


def test_repr_says_what_is_there():
    assert repr(image().connect_grid(4)) == (
        "TokenGraph(images=1, nodes=12, edges=34, channels=4, grid=(3, 4), prefix=1)"
    )
    assert repr(ragged((1, 2), (2, 2))) == (
        "TokenGraph(images=2, nodes=6, edges=0, channels=4, grid=[(1, 2), (2, 2)], prefix=0)"
    )
    assert repr(TokenGraph()) == "TokenGraph()"


def test_split_keeps_what_stands_at_nodes_edges_images_and_the_graph():
    x = torch.arange(10.0).view(2, 5, 1)
    graph = TokenGraph.from_tokens(x).with_edges(torch.tensor([[6, 0, 8], [5, 1, 9]]), torch.tensor([1.0, 2.0, 3.0]))
    graph.y, graph.label = torch.tensor([7, 8]), torch.arange(10)
    graph.train_mask, graph.name, graph.source = torch.arange(10) % 2 == 0, ["a", "b"], "camera"
    graph.edge_attr = torch.tensor([[0.5], [0.6], [0.7]])
    first, second = graph.split()
    assert [g.y.tolist() for g in (first, second)] == [[7], [8]]
    assert second.label.tolist() == [5, 6, 7, 8, 9] and second.train_mask.tolist() == [False, True, False, True, False]
    assert (first.name, second.name, second.source) == ("a", "b", "camera")
    assert second.edge_index.tolist() == [[1, 3], [0, 4]] and first.edge_attr.flatten().tolist() == pytest.approx([0.6])
    assert second.edge_weight.tolist() == [1.0, 3.0]
    assert second.edge_attr.flatten().tolist() == pytest.approx([0.5, 0.7])


def test_split_of_a_batch_gives_what_the_batch_gives():
    graphs = TokenGraph.from_tokens(torch.randn(3, 4, 2), (2, 2)).connect_knn(2).split()
    for b, graph in enumerate(graphs):
        graph.y, graph.weights, graph.names = torch.tensor([b]), torch.rand(4), [f"{b}{i}" for i in range(4)]
    for got, expected in zip(Batch.from_data_list(graphs)[0:3], graphs, strict=True):
        assert set(expected.keys()) <= set(got.keys()) | {"ptr", "batch"}
        assert torch.equal(got.weights, expected.weights) and got.names == expected.names and got.y == expected.y


def test_grid_is_none_without_one_and_num_graphs_counts_images():
    graph = TokenGraph.from_tokens(torch.randn(3, 4, 2))
    assert graph.grid is None and graph.num_graphs == 3
    assert tokengraph.coarsen(graph, "dpc-knn", 2).graph.num_graphs == 3 and len(graph.to_data_list()) == 3


def test_graphs_are_loaded_without_a_warning_by_the_safe_way(tmp_path):
    graph = TokenGraph.from_tokens(torch.ones(2, 4, 2), (2, 2)).connect_knn(2)
    graph.split()  # PyG then keeps what it found of each field, and saves it too
    torch.save(graph, tmp_path / "graph.pt")
    code = f"""
import warnings, torch
warnings.simplefilter("error")
import tokengraph
warnings.simplefilter("error")
graph = torch.load({str(tmp_path / "graph.pt")!r}, weights_only=True)
assert graph.num_images == 2 and graph.edge_index.size(1) == 16
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
