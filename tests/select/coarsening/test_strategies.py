"""Coarsening strategies on graphs: against brute force on tiny graphs, with the graph's own edges, by image alone."""

import itertools

import pytest
import torch
from torch_geometric.utils import to_undirected

import tokengraph as tg
from tokengraph.optional import load
from tokengraph.select.parts.choices.contraction import first_level
from tokengraph.select.parts.choices.contraction_sets import still_neighborhoods
from tokengraph.select.parts.choices.matching import graclus_matching, heavy_matching
from tokengraph.select.parts.graphs.pairs import Pairs
from tokengraph.select.parts.scores.merges import little_variation

ON_EDGES = [
    tg.HeavyEdges(),
    tg.HeavyEdges(normalize=True),
    tg.LocalVariation(neighbors=7),
    tg.LocalVariation(neighbors=7, sets="neighborhoods"),
    tg.Modularity(),
    tg.SpectralClustering(),
]
EACH = pytest.mark.parametrize("select", ON_EDGES, ids=repr)


def graph_of(edges, nodes, weight=None, x=None):
    index = torch.tensor(edges).T
    weight = torch.ones(index.size(1)) if weight is None else torch.tensor(weight)
    index, weight = to_undirected(index, weight, nodes)
    x = torch.eye(nodes) if x is None else x
    return tg.TokenGraph.from_tokens(x[None]).with_edges(index, weight)


def cliques(count, size):
    """Cliques of ``size`` nodes in a ring, each joined to the next by one edge."""
    edges = [(c * size + i, c * size + j) for c in range(count) for i in range(size) for j in range(i)]
    edges += [(c * size, ((c + 1) % count) * size + 1) for c in range(count)]
    return graph_of(edges, count * size)


def blobs(images=1, seed=0):
    g = torch.Generator().manual_seed(seed)
    center = torch.randn(6, 8, generator=g) * 4
    x = center.repeat_interleave(8, 0) + 0.1 * torch.randn(images, 48, 8, generator=g)
    return tg.TokenGraph.from_tokens(x, (6, 8))


@pytest.mark.parametrize(
    "select",
    [
        tg.LocalVariation(weight="given"),
        tg.Modularity(weight="given"),
        tg.SpectralClustering(weight="given"),
        tg.HeavyEdges(weight="given", normalize=True),
    ],
    ids=repr,
)
def test_coarsening_finds_the_cliques_of_a_ring(select):
    cluster = tg.coarsen(cliques(4, 4), select, 4).assignment.cluster.view(4, 4)
    if isinstance(select, tg.HeavyEdges):  # two levels of pairs, which may cross a bridge
        assert cluster.unique().numel() == 4
    else:
        assert cluster.tolist() == [[c] * 4 for c in range(4)]


@pytest.mark.parametrize("select", [*ON_EDGES, tg.FarthestPoints()], ids=repr)
def test_coarsening_finds_blobs_without_edges_of_the_graph(select):
    if isinstance(select, tg.HeavyEdges | tg.LocalVariation):  # pairs of pairs: their clusters have 2^n tokens
        keep, wanted = 12, None
    else:
        keep, wanted = 6, torch.arange(6).repeat_interleave(8)
    cluster = tg.coarsen(blobs(), select, keep).assignment.cluster
    owner = torch.arange(48) // 8
    assert all(owner[cluster == c].unique().numel() == 1 for c in range(keep))
    assert wanted is None or torch.equal(cluster, wanted)


@EACH
def test_own_edges_are_used(select):
    """Far tokens that the graph connects merge, and near ones that it does not connect stay apart."""
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(1)).abs()
    graph = graph_of([(i, i + 4) for i in range(4)], 8, x=x)
    assert tg.coarsen(graph, select, 4).assignment.cluster.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


@pytest.mark.parametrize("weight", ["given", "distance", "one", "cosine"])
@EACH
def test_weight_says_which_way_edge_weights_go(select, weight):
    one = tg.select.resolve(type(select)(weight=weight))
    x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    graph = graph_of([(0, 1), (1, 2), (2, 3), (3, 0)], 4, [0.1, 5.0, 0.1, 5.0], x)
    cluster = tg.coarsen(graph, one, 2).assignment.cluster.tolist()
    if weight == "given":
        assert cluster == [0, 1, 1, 0]
    elif weight != "one":
        assert cluster == [0, 0, 1, 1]
    else:
        assert sorted(set(cluster)) == [0, 1]


@pytest.mark.parametrize("select", [*ON_EDGES, tg.FarthestPoints()], ids=repr)
def test_images_of_a_graph_with_edges_do_not_mix(select):
    sets = [torch.randn(n, 6, generator=torch.Generator().manual_seed(n)) for n in (20, 9, 20, 1)]
    whole = tg.coarsen(tg.TokenGraph.from_tokens(sets).connect_knn(3), select, [7, 4, 3, 1])
    for b, (x, keep) in enumerate(zip(sets, (7, 4, 3, 1), strict=True)):
        a = whole.assignment
        own = a.cluster[a.ptr[b] : a.ptr[b + 1]] - a.cluster_ptr[b]
        alone = tg.TokenGraph.from_tokens([x])
        alone = alone.connect_knn(3) if len(x) > 1 else alone.with_edges(torch.zeros(2, 0, dtype=torch.long))
        assert torch.equal(own, tg.coarsen(alone, select, keep).assignment.cluster)


@EACH
def test_any_budget_is_reached_where_edges_run_out(select):
    graph = graph_of([(0, 1), (2, 3), (4, 5)], 9, x=torch.randn(9, 4, generator=torch.Generator().manual_seed(0)))
    for keep in range(1, 10):
        a = tg.coarsen(graph, select, keep).assignment
        assert a.num_clusters == keep == a.cluster.unique().numel()


@EACH
def test_clusters_are_numbered_by_their_first_tokens(select):
    cluster = tg.coarsen(blobs(seed=3), select, 13).assignment.cluster.tolist()
    assert list(dict.fromkeys(cluster)) == list(range(13))


@EACH
def test_edges_between_images_are_refused(select):
    graph = tg.TokenGraph.from_tokens(torch.randn(2, 4, 3)).with_edges(torch.tensor([[0, 1], [1, 5]]))
    with pytest.raises(ValueError, match=r"Expected edges within images \(got 1 between tokens of different images\)"):
        tg.coarsen(graph, select, 2)


def test_options_are_checked():
    with pytest.raises(ValueError, match=r"Expected weight to be one of cosine, given, distance, one \(got 'cos'\)"):
        tg.HeavyEdges(weight="cos")
    with pytest.raises(ValueError, match=r"Expected backend to be one of torch, torch-cluster \(got 'metis'\)"):
        tg.HeavyEdges(backend="metis")
    with pytest.raises(ValueError, match=r"Expected backend to be one of torch, torch-cluster \(got 'x'\)"):
        tg.FarthestPoints(backend="x")
    with pytest.raises(ValueError, match=r"Expected sets to be 'edges' or 'neighborhoods' \(got 'cliques'\)"):
        tg.LocalVariation(sets="cliques")
    for make in (lambda: tg.LocalVariation(rank=0), lambda: tg.SpectralClustering(rank=0)):
        with pytest.raises(ValueError, match=r"Expected rank >= 1 \(got rank=0\)"):
            make()
    with pytest.raises(ValueError, match=r"Expected neighbors >= 1 \(got neighbors=0\)"):
        tg.Modularity(neighbors=0)


def random_edges(seed, nodes=9, count=16):
    g = torch.Generator().manual_seed(seed)
    pairs = torch.combinations(torch.arange(nodes))
    pairs = pairs[torch.randperm(len(pairs), generator=g)[:count]]
    return pairs[:, 0], pairs[:, 1], torch.rand(count, generator=g)


def heaviest(a, b, weight):
    """The weight of the heaviest matching, by trying all sets of edges."""
    best = 0.0
    for size in range(1, 5):
        for some in itertools.combinations(range(len(a)), size):
            ends = [int(e[i]) for i in some for e in (a, b)]
            if len(set(ends)) == len(ends):
                best = max(best, float(weight[list(some)].sum()))
    return best


def weight_of(found, a, b, weight):
    table = {(int(i), int(j)): float(w) for i, j, w in zip(a, b, weight, strict=True)}
    return sum(table[int(i), int(j)] for i, j in zip(*found, strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_heavy_matching_keeps_at_least_half_of_the_heaviest(seed):
    a, b, weight = random_edges(seed)
    found = heavy_matching(a, b, weight, torch.zeros(9, dtype=torch.long), [9])
    ends = torch.cat(found)
    assert ends.unique().numel() == ends.numel()  # no node twice
    free = torch.ones(9, dtype=torch.bool)
    free[ends] = False
    assert not (free[a] & free[b]).any()  # maximal
    assert weight_of(found, a, b, weight) >= heaviest(a, b, weight) / 2


def test_heavy_matching_takes_the_heaviest_edges_of_each_image():
    a, b = torch.tensor([0, 2, 4, 6]), torch.tensor([1, 3, 5, 7])
    weight, image = torch.tensor([1.0, 2.0, 4.0, 3.0]), torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    first, second = heavy_matching(a, b, weight, image, [1, 0])
    assert (first.tolist(), second.tolist()) == ([2], [3])
    assert heavy_matching(a, b, torch.ones(4), image, [1, 1])[0].tolist() == [0, 4]  # ties: the first pair


@pytest.mark.skipif(load("torch-cluster") is None, reason="torch-cluster is not installed")
def test_graclus_matchings_weigh_the_same_and_leave_the_random_state():
    ours, theirs = [], []
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for seed in range(20):
        a, b, weight = random_edges(seed, 60, 200)
        image = torch.zeros(60, dtype=torch.long)
        found = graclus_matching(a, b, weight, image, [60])
        assert torch.cat(found).unique().numel() == 2 * found[0].numel()
        theirs.append(weight_of(found, a, b, weight))
        ours.append(weight_of(heavy_matching(a, b, weight, image, [60]), a, b, weight))
    assert torch.equal(before, torch.get_rng_state())
    assert 0.97 < sum(ours) / sum(theirs) < 1.1


@pytest.mark.skipif(load("torch-cluster") is None, reason="torch-cluster is not installed")
def test_graclus_as_a_backend_gives_an_image_the_same_clusters_in_any_batch():
    x = torch.randn(3, 30, 5, generator=torch.Generator().manual_seed(0))
    select = tg.HeavyEdges(backend="torch-cluster")
    whole = tg.coarsen(tg.TokenGraph.from_tokens(x).connect_knn(4), select, 9).assignment.cluster.view(3, 30)
    alone = tg.coarsen(tg.TokenGraph.from_tokens(x[2:]).connect_knn(4), select, 9).assignment.cluster
    assert torch.equal(whole[2] - 18, alone)


def level_with_basis(seed=3):
    a, b, weight = random_edges(seed)
    order = (a * 9 + b).argsort()
    pairs = Pairs(a[order], b[order], weight[order])
    level = first_level(torch.eye(9), torch.ones(9), torch.zeros(9, dtype=torch.long), pairs)
    level.basis = torch.randn(9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return level


def variation(level, nodes):
    """The local variation cost of a set by its definition, with matrices over all nodes."""
    pairs, w = level.pairs, torch.zeros(9, 9, dtype=torch.float64)
    w[pairs.a, pairs.b] = w[pairs.b, pairs.a] = pairs.weight.double()
    inside = torch.zeros(9, dtype=torch.bool)
    inside[nodes] = True
    w[inside[:, None] != inside] *= 2
    w[~inside[:, None] & ~inside] = 0
    moved = torch.where(inside[:, None], level.basis - level.basis[inside].mean(0), 0.0)
    gram = moved.T @ (torch.diag(w.sum(1)) - w) @ moved
    return float(torch.linalg.eigvalsh(gram)[-1]) / (len(nodes) - 1)


def test_local_variation_is_the_cost_of_its_definition():
    level = level_with_basis()
    scores = little_variation(level).tolist()
    for i, j, score in zip(level.pairs.a.tolist(), level.pairs.b.tolist(), scores, strict=True):
        assert variation(level, [i, j]) == pytest.approx(-score, rel=1e-5)


@pytest.mark.parametrize("room", [1, 2, 4, 8])
def test_neighborhoods_are_contracted_by_rising_cost(room):
    level = level_with_basis()
    ends = list(zip(level.pairs.a.tolist(), level.pairs.b.tolist(), strict=True))
    near = {n: [n, *sorted({*(j for i, j in ends if i == n), *(i for i, j in ends if j == n)})] for n in range(9)}
    first, second = (t.tolist() for t in still_neighborhoods(level, [room]))
    assert 1 <= len(second) <= room and len(set(second)) == len(second) and not set(first) & set(second)
    assert all(i < j for i, j in zip(first, second, strict=True))
    picked = {low: [low, *(j for i, j in zip(first, second, strict=True) if i == low)] for low in first}
    assert all(any(set(nodes) <= set(some) for some in near.values()) for nodes in picked.values())
    if room == 8:  # the best of all whole neighbourhoods is picked as it is
        best = min(near.values(), key=lambda nodes: variation(level, nodes))
        assert sorted(best) in [sorted(nodes) for nodes in picked.values()]


@pytest.mark.parametrize("sets", ["edges", "neighborhoods"])
def test_local_variation_keeps_low_eigenvalues_better_than_random_pairs(sets):
    graph = tg.TokenGraph.from_tokens(torch.ones(1, 144, 1), (12, 12)).connect_grid(4)
    ours = tg.coarsen(graph, tg.LocalVariation(weight="one", sets=sets), 72).assignment
    order = torch.randperm(144, generator=torch.Generator().manual_seed(0))
    pairs = torch.empty(144, dtype=torch.long)
    pairs[order] = torch.arange(144) // 2
    theirs = tg.Assignment(pairs, 72)
    both = [float(tg.quality(graph, a, weight="one", eigenvalues=10).spectral) for a in (ours, theirs)]
    assert both[0] < 0.2 * both[1]


def test_farthest_points_are_those_of_a_loop():
    x = torch.randn(2, 20, 3, generator=torch.Generator().manual_seed(0))
    centers = tg.farthest_points(x, 6).centers.view(2, 6)
    for b in range(2):
        chosen = [0]
        while len(chosen) < 6:
            chosen.append(int(torch.cdist(x[b], x[b, chosen]).amin(1).argmax()))
        assert centers[b].tolist() == sorted(b * 20 + c for c in chosen)
        nearest = torch.tensor(sorted(chosen))[torch.cdist(x[b], x[b, sorted(chosen)]).argmin(1)]
        cluster = tg.farthest_points(x[b : b + 1], 6).cluster
        assert torch.equal(torch.tensor(sorted(chosen))[cluster], nearest)


@pytest.mark.skipif(load("torch-cluster") is None, reason="torch-cluster is not installed")
@pytest.mark.parametrize("kind", ["random", "equal", "grid"])
def test_farthest_points_of_torch_cluster_are_the_same(kind):
    x = {
        "random": torch.randn(2, 30, 6, generator=torch.Generator().manual_seed(2)),
        "equal": torch.ones(1, 12, 3),
        "grid": torch.stack(torch.meshgrid(torch.arange(5.0), torch.arange(5.0), indexing="ij"), -1).view(1, 25, 2),
    }[kind]
    for keep in (1, 5, 11):
        a, b = (tg.farthest_points(x, keep, backend=backend) for backend in ("torch", "torch-cluster"))
        assert torch.equal(a.centers, b.centers) and a.num_clusters == b.cluster.unique().numel()
        if kind == "random":
            assert torch.equal(a.cluster, b.cluster)


def test_farthest_points_checks_its_input():
    with pytest.raises(ValueError, match=r"Expected finite tokens \(got NaN or infinity in 1 rows\)"):
        tg.farthest_points(torch.tensor([[[1.0], [torch.nan]]]), 1)
    with pytest.raises(ValueError, match=r"Expected keep >= 1"):
        tg.farthest_points(torch.ones(1, 2, 1), 0)
