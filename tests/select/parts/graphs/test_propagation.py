"""GTP's propagation graph: its three kinds, their weights, and its edges after tokens leave."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import grid as pyg_grid
from torch_geometric.utils import remove_self_loops, to_dense_adj

from tokengraph import TokenGraph
from tokengraph.select.parts.graphs.propagation import PropagationGraph, gtp_graph, propagation_graph

KINDS = ["spatial", "semantic", "mixed"]


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation makes, inside."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor))])
        return out


def dense(graph: PropagationGraph) -> torch.Tensor:
    """Weights as ``[B, receiver, sender]``, read from the slots."""
    n = graph.patches
    out = torch.zeros(graph.images, n, n)
    out.index_put_((graph.receiver // n, graph.receiver % n, graph.sender % n), graph.weight, accumulate=True)
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_slots_are_sorted_by_sender_and_as_many_for_any_features(kind):
    graphs = [propagation_graph(x, (3, 4), graph=kind, neighbors=5) for x in torch.randn(2, 2, 12, 8)]
    for graph in graphs:
        assert torch.equal(graph.sender, torch.repeat_interleave(torch.arange(24), graph.start.diff()))
        assert graph.start[0] == 0 and graph.start[-1] == graph.receiver.numel() == graphs[0].receiver.numel()
        assert torch.equal(graph.sender // 12, graph.receiver // 12)  # images never mixed
        assert (graph.sender != graph.receiver)[graph.weight != 0].all()
        assert graph.weight.dtype == torch.float32 and graph.x.shape == (24, 8)


@pytest.mark.parametrize("shape", [(14, 14), (3, 5), (1, 6), (6, 1), (2, 2), (1, 1)])
def test_spatial_graph_is_the_grid_normalised_as_pyg_does(shape):
    h, w = shape
    graph = propagation_graph(torch.zeros(2, h * w, 3), shape, graph="spatial")
    edges = 2 * (h * (w - 1) + w * (h - 1) + 2 * (h - 1) * (w - 1))
    assert graph.weight.numel() == 2 * edges and (graph.weight > 0).all()
    index = remove_self_loops(pyg_grid(h, w)[0])[0]
    index, weight = gcn_norm(index, None, h * w, add_self_loops=False)
    # gcn_norm's edges run from source to target; ours from sender to receiver: [receiver, sender] is its transpose.
    expected = to_dense_adj(index, edge_attr=weight, max_num_nodes=h * w)[0].T
    torch.testing.assert_close(dense(graph), expected.expand(2, -1, -1))
    assert torch.equal(dense(graph), dense(graph).transpose(1, 2))


def test_spatial_graph_makes_nothing_of_patches_by_patches():
    with LargestTensor() as seen:
        graph = propagation_graph(torch.randn(1, 48 * 47, 2), (48, 47), graph="spatial")
    assert graph.weight.numel() <= seen.numel <= 8 * 48 * 47


def test_spatial_graph_of_14_by_14_has_1404_edges_and_degrees_3_5_8():
    graph = propagation_graph(torch.zeros(1, 196, 1), (14, 14), graph="spatial")
    degree = graph.start.diff().view(14, 14)
    assert graph.receiver.numel() == 1404
    assert (degree[0, 0], degree[0, 5], degree[5, 5]) == (3, 5, 8)
    assert degree.flatten().bincount().tolist() == [0, 0, 0, 4, 0, 48, 0, 0, 144]


def test_spatial_tables_of_eight_hold_the_same_edges_and_point_home_elsewhere():
    graph = propagation_graph(torch.zeros(1, 12, 1), (3, 4), graph="spatial")
    out = torch.zeros(12, 12)
    sender = torch.arange(12)[:, None].expand(12, 8)
    out.index_put_((graph.near, sender), graph.near_weight, accumulate=True)
    assert torch.equal(out, dense(graph)[0])
    assert torch.equal(graph.near[graph.near_weight == 0], sender[graph.near_weight == 0])
    again = propagation_graph(torch.ones(5, 12, 1), (3, 4), graph="spatial")
    assert again.near is graph.near  # built once a grid


@pytest.mark.parametrize("k", [1, 4, 11])
def test_semantic_graph_gives_every_receiver_exactly_k(k):
    graph = propagation_graph(torch.randn(3, 12, 8), graph="semantic", neighbors=k)
    adjacency = dense(graph) > 0
    assert (adjacency.sum(dim=2) == k).all()
    assert not adjacency.diagonal(dim1=1, dim2=2).any()
    torch.testing.assert_close(dense(graph)[adjacency], torch.full((36 * k,), 1 / k))
    if k == 11:
        assert torch.equal(adjacency, ~torch.eye(12, dtype=torch.bool).expand(3, -1, -1))


def test_semantic_graph_lists_the_nearest_by_cosine_as_senders():
    x = torch.tensor([[[1.0, 0.0], [5.0, 0.5], [0.0, 1.0]]])
    edge_index, edge_weight = gtp_graph(x, graph="semantic", neighbors=1)
    # Token 1 is nearest to 0 and to 2, token 0 to 1; no token listens to 2.
    assert edge_index.tolist() == [[0, 1, 1], [1, 0, 2]]
    assert edge_weight.tolist() == [1.0, 1.0, 1.0]


def test_semantic_graph_does_not_change_when_tokens_are_rescaled():
    x = torch.randn(2, 12, 8)
    scale = 2.0 ** torch.randint(-3, 4, (2, 12, 1))
    straight, rescaled = (propagation_graph(t, graph="semantic", neighbors=3) for t in (x, x * scale))
    assert torch.equal(straight.receiver, rescaled.receiver)


def test_semantic_graph_of_permuted_tokens_is_permuted():
    x, order = torch.randn(1, 12, 8), torch.randperm(12)
    straight, shuffled = (dense(propagation_graph(t, graph="semantic", neighbors=3)) for t in (x, x[:, order]))
    assert torch.equal(shuffled, straight[:, order][:, :, order])


@pytest.mark.parametrize("kind", ["semantic", "mixed"])
@pytest.mark.parametrize("x", [torch.zeros(1, 12, 4), torch.ones(1, 12, 4), torch.eye(4).repeat(3, 1)[None]])
def test_duplicates_and_zero_vectors_keep_k_neighbours_and_finite_weights(kind, x):
    graph = propagation_graph(x, (3, 4), graph=kind, neighbors=2)
    weight = dense(graph)
    assert weight.isfinite().all() and not weight.diagonal(dim1=1, dim2=2).any()
    if kind == "semantic":
        assert ((weight > 0).sum(dim=2) == 2).all()
    if kind == "semantic" and not x.std() > 0:  # all equal: ties go to the lowest index
        assert (weight[0] > 0)[5].nonzero().flatten().tolist() == [0, 1]


@pytest.mark.parametrize("k", [0, 1, 8])
def test_mixed_graph_is_the_union_and_counts_common_edges_once(k):
    x = torch.randn(2, 20, 8)
    spatial, semantic, mixed = (dense(propagation_graph(x, (4, 5), graph=g, neighbors=k)) for g in KINDS)
    adjacency = (spatial > 0) | (semantic > 0)
    degree = adjacency.sum(dim=2).float()
    assert (spatial[semantic > 0] > 0).any() == (k > 0)  # some edges are in both
    torch.testing.assert_close(mixed, adjacency * (degree[:, :, None] * degree[:, None, :]).rsqrt())


def test_no_neighbours_at_all_is_an_empty_list_not_nan():
    graph = propagation_graph(torch.randn(2, 6, 4), graph="semantic", neighbors=0)
    assert graph.edges()[0].shape == (2, 0) and graph.start.tolist() == [0] * 13


def test_graph_of_an_empty_batch_is_empty():
    for kind in KINDS:
        graph = propagation_graph(torch.zeros(0, 12, 4), (3, 4), graph=kind, neighbors=2)
        assert graph.images == 0 and graph.edges()[0].shape == (2, 0)


def test_graph_takes_half_precision_and_no_part_in_autograd():
    x = torch.randn(1, 12, 8, requires_grad=True)
    full = propagation_graph(x, (3, 4), neighbors=3)
    assert not full.weight.requires_grad and not full.x.requires_grad
    half = propagation_graph(x.to(torch.bfloat16), (3, 4), neighbors=3)
    assert half.weight.dtype == torch.float32 and half.x.dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(propagation_graph(x, (3, 4), neighbors=3).receiver, full.receiver)


def test_from_edges_takes_weights_as_they_are_and_makes_none_where_a_degree_is_zero():
    x = torch.zeros(1, 4, 2)
    cycle = torch.tensor([[0, 1, 3], [1, 2, 0]])
    given = PropagationGraph.from_edges(x, cycle, torch.tensor([0.5, 2.0, 1.0]))
    assert given.edges()[0].tolist() == cycle.tolist() and given.edges()[1].tolist() == [0.5, 2.0, 1.0]
    made = PropagationGraph.from_edges(x, cycle)
    assert made.weight.tolist() == [1.0, 1.0, 0.0]  # patch 3 hears of no other


@pytest.mark.parametrize("kind", KINDS)
def test_token_graph_after_many_steps_has_the_first_weights_bit_for_bit(kind):
    x = torch.randn(2, 20, 8)
    graph = propagation_graph(x, (4, 5), graph=kind, neighbors=3)
    first = dense(graph)
    patch = torch.arange(20).expand(2, -1)
    for left in (15, 9, 4):
        places = torch.stack([torch.randperm(patch.size(1))[:left] for _ in range(2)])
        patch = patch.gather(1, places)
        tokens = TokenGraph.from_propagation(graph, patch, torch.full((2, left), 1.5))
        now = to_dense_adj(tokens.edge_index, tokens.batch, tokens.edge_weight, left, batch_size=2).transpose(1, 2)
        for b in range(2):
            assert torch.equal(now[b], first[b][patch[b]][:, patch[b]])
            assert torch.equal(tokens.x[tokens.batch == b], x[b][patch[b]])
        assert tokens.grid == (4, 5) and tokens.counts == [left, left] and tokens.size.tolist() == [1.5] * 2 * left
        assert torch.equal(tokens.pos.view(2, left, 2).long(), torch.stack([patch // 5, patch % 5], dim=2))


def test_token_graph_of_all_patches_needs_no_list():
    graph = propagation_graph(torch.randn(1, 6, 4), graph="semantic", neighbors=2)
    tokens = TokenGraph.from_propagation(graph)
    assert torch.equal(tokens.edge_index, graph.edges()[0]) and torch.equal(tokens.edge_weight, graph.edges()[1])
    assert tokens.size.tolist() == [1.0] * 6 and "pos" not in tokens


def test_an_image_has_the_same_graph_alone_and_in_any_batch():
    x = torch.randn(3, 20, 8)
    for kind in KINDS:
        many = propagation_graph(x, (4, 5), graph=kind, neighbors=3)
        alone = propagation_graph(x[1:2], (4, 5), graph=kind, neighbors=3)
        slots = slice(int(many.start[20]), int(many.start[40]))
        assert torch.equal(many.receiver[slots] - 20, alone.receiver)  # choices away from ties
        torch.testing.assert_close(many.weight[slots], alone.weight)  # products of another batch may round otherwise


def test_bad_graphs_are_refused():
    x = torch.randn(1, 12, 4)
    with pytest.raises(ValueError, match=r"to be one of spatial, semantic, mixed, local \(got 'Mixed'\)"):
        propagation_graph(x, (3, 4), graph="Mixed")
    with pytest.raises(ValueError, match="graph to be one of"):
        propagation_graph(x, (3, 4), graph=None)  # published: silently spatial
    with pytest.raises(ValueError, match=r"Expected 0 <= neighbors < n=12 \(got neighbors=12\)"):
        propagation_graph(x, (3, 4), neighbors=12)
    with pytest.raises(ValueError, match="Expected neighbors >= 0"):
        propagation_graph(x, (3, 4), neighbors=-1)
    with pytest.raises(TypeError, match="Expected neighbors to be an int"):
        propagation_graph(x, (3, 4), neighbors=2.0)
    with pytest.raises(ValueError, match=r"Expected grid as \(H, W\) for graph='spatial' \(got None\)"):
        propagation_graph(x, graph="spatial")
    with pytest.raises(ValueError, match="Expected a grid of N=12 patches"):
        propagation_graph(x, (3, 5))
    with pytest.raises(ValueError, match="Expected finite tokens"):
        propagation_graph(x * torch.nan, (3, 4))
    with pytest.raises(ValueError, match="Expected edges within images"):
        PropagationGraph.from_edges(x, torch.tensor([[0], [12]]))
    with pytest.raises(ValueError, match=r"Expected edge_index of shape \[2, E\]"):
        PropagationGraph.from_edges(x, torch.zeros(3, 2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"Expected patch \(and size\) of shape \[B=1, n'\]"):
        TokenGraph.from_propagation(propagation_graph(x, (3, 4)), torch.zeros(2, 3, dtype=torch.long))
