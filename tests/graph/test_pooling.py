"""Bridges to PyTorch Geometric: its selections as strategies, and strategies as pooling layers."""

import copy
from types import SimpleNamespace

import pytest
import torch
from needs import library
from torch import nn
from torch.testing import assert_close
from torch_geometric.nn import GCNConv, SAGPooling, TopKPooling, global_mean_pool
from torch_geometric.nn.pool.select import SelectTopK

import tokengraph as tg
from tokengraph.testing import check_select, tiny_vit


def batch_of_graphs(counts=(12, 8, 5), channels=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    n = sum(counts)
    batch = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    ends = torch.randint(n, (2, 8 * n), generator=g)
    ends = ends[:, (batch[ends[0]] == batch[ends[1]]) & (ends[0] != ends[1])].unique(dim=1)
    return torch.randn(n, channels, generator=g), ends, batch


class ByNorm(nn.Module):
    """PyG's top-k of norms, for features of any width."""

    def __init__(self, ratio=0.5):
        super().__init__()
        self.ratio, self.top = ratio, SelectTopK(1)

    def forward(self, x, batch):
        self.top.ratio = self.ratio
        return self.top(x.norm(dim=1).log1p() / 40, batch)  # tanh has no ties so near zero


# PyG's selections as strategies


@pytest.mark.parametrize("kind", [TopKPooling, SAGPooling])
@pytest.mark.parametrize("ratio", [4, 0.5])
def test_a_pooling_layer_as_a_strategy_gives_what_it_gives(kind, ratio):
    torch.manual_seed(0)
    x, edges, batch = batch_of_graphs()
    layer = kind(8, ratio=ratio)
    theirs, their_edges, _, their_batch, perm, _ = layer(x, edges, batch=batch)
    ours = tg.TokenPooling(tg.FromPyG(layer), ratio)(x, edges, batch=batch)
    order = perm.argsort()  # theirs are sorted by score
    assert_close(ours.x, theirs[order])
    assert torch.equal(ours.batch, their_batch[order])
    assert torch.equal(ours.edge_index, order.argsort()[their_edges].unique(dim=1))
    assert ours.size.tolist() == [1.0] * len(order)


def test_the_budget_becomes_the_ratio_and_the_module_keeps_its_own():
    select = SelectTopK(8, ratio=0.9)
    graph = tg.TokenGraph.from_tokens([torch.randn(9, 8), torch.randn(5, 8)])
    assert tg.coarsen(graph, tg.FromPyG(select), [3, 5]).graph.counts == [3, 5]
    assert tg.coarsen(graph, tg.FromPyG(select), 0.2).graph.counts == [2, 1]
    assert select.ratio == 0.9


def test_laws_hold_for_a_selection():
    # The module has no batching of compiled graphs: its top-k reads values.
    check_select(tg.FromPyG(ByNorm(), gate=False), without=["compiles_whole"])


def test_scores_gate_features_and_get_gradients_but_leave_sizes_and_positions():
    graph = tg.TokenGraph.from_tokens(torch.randn(2, 16, 8), (4, 4)).connect_grid()
    select = SelectTopK(8)
    coarse, a = tg.coarsen(graph, tg.FromPyG(select), 5)
    score = select.act((graph.x * select.weight).sum(1) / select.weight.norm())
    assert_close(coarse.x, (graph.x * score[:, None])[a.centers])
    assert_close(coarse.pos, graph.pos[a.centers])
    assert coarse["size"].tolist() == [1.0] * 10
    coarse.x.square().sum().backward()
    assert select.weight.grad.abs().sum() > 0
    plain, b = tg.coarsen(graph, tg.FromPyG(select, gate=False), 5)
    assert torch.equal(plain.x, graph.x[b.centers])


def test_a_hierarchy_of_gates_multiplies_step_by_step():
    graph = tg.TokenGraph.from_tokens(torch.randn(1, 16, 8))
    levels = tg.hierarchy(graph, tg.FromPyG(SelectTopK(8)), [8, 4])
    both = levels.between(-1)
    assert_close(both.reduce(graph.x)[0], levels.graphs[-1].x)
    assert both.to("cpu").reduce(graph.x)[1].tolist() == [1.0] * 4


def test_a_threshold_decides_how_many_nodes_stay():
    x = torch.randn(2, 16, 8)
    select = SelectTopK(8, min_score=0.05)
    a = tg.FromPyG(select)(tg.select.base.Tokens(x), 3)
    score = (x @ select.weight[0]).softmax(dim=1)
    wanted = score > torch.minimum(torch.tensor(0.05), score.amax(1, keepdim=True) - 1e-7)
    assert a.cluster_ptr.diff().tolist() == wanted.sum(1).tolist()
    assert torch.equal((a.cluster < a.num_clusters).view(2, 16), wanted)


@pytest.mark.parametrize("dense", [False, True])
def test_a_matrix_of_nodes_and_clusters_is_read(dense):
    """As torch-geometric-pool returns it, sparse or dense, where clusters of an image are numbered within it."""

    class Halves(nn.Module):
        def forward(self, x, batch=None):
            within = torch.cat([torch.arange(int(n)) for n in torch.bincount(batch)])
            s = nn.functional.one_hot((within >= 3).long(), 2).float()
            if not dense:
                node = torch.arange(len(x))
                index = torch.stack([node, (within >= 3).long() + 2 * batch])
                s = torch.sparse_coo_tensor(index, torch.ones(len(x)), (len(x), 4), check_invariants=False)
            return SimpleNamespace(s=s)

    graph = tg.TokenGraph.from_tokens([torch.randn(6, 4), torch.randn(5, 4)]).connect_knn(2)
    coarse, a = tg.coarsen(graph, tg.FromPyG(Halves()), 2)
    assert a.cluster.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 2
    assert_close(coarse.x[0], graph.x[:3].mean(0))


def test_soft_clusters_add_up_as_a_weighted_sum():
    class Soft(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x, mask=None, batch=None):
            return SimpleNamespace(s=self.linear(x).softmax(dim=-1))

    graph = tg.TokenGraph.from_tokens(torch.randn(2, 6, 4)).connect_knn(2)
    module = Soft()
    pooled = tg.TokenPooling(tg.FromPyG(module), 3)(graph.x, graph.edge_index, batch=graph.batch)
    s = module(graph.x).s.view(2, 6, 3)
    assert_close(pooled.x.view(2, 3, 4), s.transpose(1, 2) @ graph.x.view(2, 6, 4))
    assert_close(pooled.size.view(2, 3), s.sum(1))
    assert pooled.assignment.lossless
    pooled.edge_weight.square().sum().backward()
    assert module.linear.weight.grad.abs().sum() > 0


def test_selections_of_torch_geometric_pool_are_strategies():
    tgp = pytest.importorskip("tgp.select", reason="torch-geometric-pool is not installed")
    x, edges, batch = batch_of_graphs()
    top = tgp.TopkSelect(8, ratio=0.5)
    pooled = tg.TokenPooling(tg.FromPyG(top), 4)(x, edges, batch=batch)
    assert torch.bincount(pooled.batch).tolist() == [4, 4, 4]
    kmis = tg.TokenPooling(tg.FromPyG(tgp.KMISSelect(order_k=1, scorer="degree")), 4)(x, edges, batch=batch)
    assert 1 <= kmis.x.size(0) < 25 and not kmis.assignment.lossy


def test_a_selection_trains_inside_a_vision_transformer():
    library("timm")
    torch.manual_seed(0)
    model = tiny_vit()
    width = model.embed_dim
    with tg.attach(model, tg.FromPyG(SelectTopK(width)), {1: 8}) as handle:
        images = torch.randn(2, 3, 32, 32)
        model(images).square().sum().backward()
        assert handle.trace.counts[-1] == 8
        grads = {n: p.grad for n, p in model.named_parameters() if "pyg_select" in n}
    assert len(grads) == 1 and all(g.abs().sum() > 0 for g in grads.values())


def test_from_pyg_checks_what_it_is_given():
    with pytest.raises(TypeError, match=r"Expected a Select module of PyTorch Geometric \(got str\)"):
        tg.FromPyG("topk")

    class Pools(nn.Module):
        def forward(self, x):
            return x

    graph = tg.TokenGraph.from_tokens(torch.randn(2, 4, 3))
    with pytest.raises(TypeError, match=r"Expected a selection with node_index and cluster_index, .* \(got Tensor\)"):
        tg.coarsen(graph, tg.FromPyG(Pools()), 2)

    class Across(nn.Module):
        def forward(self, x):
            node = torch.arange(len(x))
            return SimpleNamespace(node_index=node, cluster_index=node % 2, num_clusters=2)

    with pytest.raises(ValueError, match=r"Expected clusters within images \(got one with nodes of several\)"):
        tg.coarsen(graph, tg.FromPyG(Across()), 2)


# strategies as pooling layers


@pytest.mark.parametrize(
    "select", ["heavy-edges", "local-variation", "modularity", "spectral", "farthest-points", "dpc-knn", "tome"]
)
def test_a_strategy_pools_graphs_of_a_batch_alone(select):
    x, edges, batch = batch_of_graphs()
    pool = tg.TokenPooling(select, 0.5)
    whole = pool(x, edges, batch=batch)
    assert torch.bincount(whole.batch).tolist() == [6, 4, 3]
    own = batch == 1
    inside = own[edges[0]]
    one = pool(x[own], edges[:, inside] - 12)
    assert_close(whole.x[6:10], one.x)
    mine = (whole.batch == 1)[whole.edge_index[0]]
    assert torch.equal(whole.edge_index[:, mine] - 6, one.edge_index)


def test_gradients_reach_features_and_edge_weights():
    x, edges, batch = batch_of_graphs()
    x, weight = x.requires_grad_(), torch.rand(edges.size(1)).requires_grad_()
    pooled = tg.TokenPooling("dpc-knn", 3)(x, edges, weight, batch)
    (pooled.x.square().sum() + pooled.edge_weight.square().sum()).backward()
    assert x.grad.abs().sum(1).all()
    across = pooled.assignment.cluster[edges[0]] != pooled.assignment.cluster[edges[1]]
    assert torch.equal(weight.grad != 0, across)


def test_sizes_weigh_the_second_pooling():
    x, edges, batch = batch_of_graphs((16,))
    pool = tg.TokenPooling("heavy-edges", 0.5)
    first = pool(x, edges)
    second = pool(*first[:4], size=first.size)
    mean = (second.x * second.size[:, None]).sum(0) / 16
    assert second.size.sum() == 16
    assert_close(mean, x.mean(0))


def test_a_gnn_with_two_poolings_learns():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = GCNConv(8, 16), GCNConv(16, 16)
            self.pool = tg.TokenPooling(tg.FromPyG(SelectTopK(16)), 0.5)
            self.head = nn.Linear(16, 2)

        def forward(self, x, edges, batch):
            pooled = self.pool(self.first(x, edges).relu(), edges, batch=batch)
            x = self.second(pooled.x, pooled.edge_index, pooled.edge_weight).relu()
            return self.head(global_mean_pool(x, pooled.batch))

    torch.manual_seed(0)
    net = Net()
    assert any(name.startswith("pool.") for name, _ in net.named_parameters())
    x, edges, batch = batch_of_graphs((9, 9, 9, 9))
    wanted = torch.tensor([0, 1, 0, 1])
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x, edges, batch), wanted)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert all(p.grad is not None for p in net.parameters())


def test_a_copy_of_a_pooling_has_parameters_of_its_own():
    pool = tg.TokenPooling(tg.FromPyG(SelectTopK(8)), 3)
    other = copy.deepcopy(pool)
    assert other.select.select is other.pyg_select and other.pyg_select is not pool.pyg_select
    with torch.no_grad():
        other.pyg_select.weight.neg_()
    x = torch.randn(9, 8)
    assert not torch.equal(pool(x).x, other(x).x)
    other.load_state_dict(pool.state_dict())
    assert torch.equal(pool(x).x, other(x).x)


def test_pooling_without_edges_and_with_empty_graphs():
    pool = tg.TokenPooling("farthest-points", 2)
    pooled = pool(torch.randn(5, 3), batch=torch.tensor([0, 0, 0, 2, 2]), batch_size=4)
    assert pooled.edge_index is None and pooled.batch.tolist() == [0, 0, 2, 2]
    assert "FarthestPoints" in repr(pool) and "keep=2" in repr(pool)


def test_pooling_checks_its_input():
    for keep in (0, 1.5):
        with pytest.raises(ValueError, match="Expected"):
            tg.TokenPooling("tome", keep)
    pool = tg.TokenPooling("tome", 2)
    with pytest.raises(ValueError, match=r"Expected batch of shape \[M=3\] \(got \[2\]\)"):
        pool(torch.randn(3, 2), batch=torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"Expected a sorted batch vector"):
        pool(torch.randn(3, 2), batch=torch.tensor([1, 0, 1]))
    with pytest.raises(ValueError, match=r"Expected batch below batch_size=1 \(got 1\)"):
        pool(torch.randn(3, 2), batch=torch.tensor([0, 1, 1]), batch_size=1)
