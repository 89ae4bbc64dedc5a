"""Partitions whose number of clusters the graph decides, against networkx."""

import pytest
import torch
from torch_geometric.utils import to_undirected

import tokengraph as tg

nx = pytest.importorskip("networkx")


def graph_of(edges, nodes, weight=None, x=None):
    index = torch.tensor(edges, dtype=torch.long).view(-1, 2).T
    weight = torch.ones(index.size(1)) if weight is None else torch.as_tensor(weight)
    index, weight = to_undirected(index, weight, nodes)
    return tg.TokenGraph.from_tokens((torch.ones(nodes, 1) if x is None else x)[None]).with_edges(index, weight)


def random_graph(seed, nodes=20, edges=26):
    g = torch.Generator().manual_seed(seed)
    pairs = torch.combinations(torch.arange(nodes))
    pairs = pairs[torch.randperm(len(pairs), generator=g)[:edges]]
    return pairs.tolist(), torch.rand(edges, generator=g)


def same(labels):
    labels = torch.as_tensor(labels)
    return labels[:, None] == labels


@pytest.mark.parametrize("seed", range(3))
def test_threshold_components_are_those_of_networkx(seed):
    edges, weight = random_graph(seed)
    weight = 2 * weight - 1
    a = tg.threshold_components(graph_of(edges, 20, weight), -0.2, weight="given")
    other = nx.Graph()
    other.add_nodes_from(range(20))
    other.add_edges_from(e for e, w in zip(edges, weight.tolist(), strict=True) if w > -0.2)
    parts = list(nx.connected_components(other))
    assert a.num_clusters == len(parts)
    assert all(a.cluster[list(p)].unique().numel() == 1 for p in parts)
    assert list(dict.fromkeys(a.cluster.tolist())) == list(range(len(parts)))  # by first token


def test_threshold_components_leave_out_the_lightest_edges():
    graph = graph_of([(0, 1), (1, 2), (2, 3), (3, 4)], 5, [0.9, 0.6, 0.8, 0.7])
    assert tg.threshold_components(graph, 0.65, weight="given").cluster.tolist() == [0, 0, 1, 1, 1]
    assert tg.threshold_components(graph, 0.9, weight="given").num_clusters == 5  # strictly above
    assert tg.threshold_components(graph, 0.0, 3, weight="given").cluster.tolist() == [0, 0, 1, 1, 2]
    assert tg.threshold_components(graph, 0.0, 99, weight="given").num_clusters == 5
    with pytest.raises(ValueError, match=r"Expected keep >= 1, one number or one for each of B=1 images \(got 0\)"):
        tg.threshold_components(graph, 0.5, 0)


@pytest.mark.parametrize("order", ["index", "degree"])
@pytest.mark.parametrize("hops", [0, 1, 2, 3])
def test_k_mis_is_independent_and_maximal(hops, order):
    for seed in range(3):
        edges, _ = random_graph(seed)
        a = tg.k_mis(graph_of(edges, 20), hops, order=order)
        other = nx.Graph(edges)
        other.add_nodes_from(range(20))
        hop = dict(nx.all_pairs_shortest_path_length(other))
        centers = a.centers.tolist()
        assert centers == sorted(centers) and len(centers) == a.num_clusters
        for i in centers:
            assert all(hop[i].get(j, 99) > hops for j in centers if j != i)
        for node in range(20):
            own = hop[node].get(centers[int(a.cluster[node])], 99)
            assert own <= hops and own == min(hop[node].get(c, 99) for c in centers)


def test_threshold_components_take_opposite_features_apart():
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.1], [1.0, 0.2]])
    graph = graph_of([(0, 1), (1, 2), (0, 2)], 3, x=x)
    assert tg.threshold_components(graph, -0.5).cluster.tolist() == [0, 1, 0]
    assert tg.threshold_components(graph, -1.01).num_clusters == 1


def test_weights_that_are_not_finite_are_refused():
    graph = graph_of([(0, 1), (1, 2)], 3, [1.0, torch.nan])
    with pytest.raises(ValueError, match=r"Expected finite edge weights \(got NaN or infinity in 2 rows\)"):
        tg.communities(graph, weight="given")


def test_k_mis_visits_nodes_of_many_neighbours_first():
    star = graph_of([(0, 3), (1, 3), (2, 3)], 4)
    assert tg.k_mis(star).centers.tolist() == [0, 1, 2]
    assert tg.k_mis(star, order="degree").centers.tolist() == [3]
    with pytest.raises(ValueError, match=r"Expected order to be one of index, degree \(got 'size'\)"):
        tg.k_mis(star, order="size")
    with pytest.raises(ValueError, match=r"Expected hops as an int >= 0 \(got -1\)"):
        tg.k_mis(star, -1)


def test_communities_reach_the_modularity_of_networkx():
    club = nx.karate_club_graph()
    theirs = nx.community.modularity(club, nx.community.greedy_modularity_communities(club, weight=None), weight=None)
    graph = graph_of(list(club.edges), 34)
    a = tg.communities(graph, weight="one")
    parts = [set((a.cluster == c).nonzero()[:, 0].tolist()) for c in range(a.num_clusters)]
    ours = nx.community.modularity(club, parts, weight=None)
    assert ours > 0.95 * theirs
    assert float(tg.quality(graph, a, weight="one").modularity) == pytest.approx(ours, abs=1e-6)


def test_communities_leave_nodes_without_edges_alone():
    a = tg.communities(graph_of([(0, 1), (2, 3)], 5), weight="one")
    assert a.cluster.tolist() == [0, 0, 1, 1, 2]


@pytest.mark.parametrize(
    "split",
    [lambda g: tg.threshold_components(g, 0.5), lambda g: tg.k_mis(g, 2), tg.communities],
    ids=["tau", "mis", "q"],
)
def test_images_do_not_mix_and_the_map_contracts_the_graph(split):
    sets = [torch.randn(n, 5, generator=torch.Generator().manual_seed(n)) for n in (14, 8, 14)]
    whole = tg.TokenGraph.from_tokens(sets).connect_knn(3)
    a = split(whole)
    for b, x in enumerate(sets):
        alone = split(tg.TokenGraph.from_tokens([x]).connect_knn(3))
        assert torch.equal(a.cluster[a.ptr[b] : a.ptr[b + 1]] - a.cluster_ptr[b], alone.cluster)
    coarse = tg.contract(whole, a)
    assert coarse.counts == a.cluster_ptr.diff().tolist()
    assert torch.equal(*coarse.batch[coarse.edge_index])
    assert coarse["size"].sum() == 36


def test_partitions_want_edges():
    graph = tg.TokenGraph.from_tokens(torch.ones(1, 4, 2))
    for split in (lambda g: tg.threshold_components(g, 0.5), tg.k_mis, tg.communities):
        with pytest.raises(ValueError, match=r"Expected a graph with edges \(got none\). Add them"):
            split(graph)


def test_partitions_of_nothing_are_empty():
    graph = tg.TokenGraph.from_tokens([torch.zeros(0, 3), torch.ones(1, 3)]).with_edges(
        torch.zeros(2, 0, dtype=torch.long)
    )
    for split in (lambda g: tg.threshold_components(g, 0.5), tg.k_mis, tg.communities):
        assert split(graph).cluster_ptr.tolist() == [0, 0, 1]
