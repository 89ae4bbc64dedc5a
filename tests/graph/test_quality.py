"""Measures of a coarsening, against brute force and networkx."""

import math

import numpy as np
import pytest
import torch

import tokengraph as tg

MEASURES = ("spectral", "cut", "modularity", "variance", "compactness", "accuracy", "recall", "leakage")


def case(seed=0, shape=(4, 5), images=1):
    g = torch.Generator().manual_seed(seed)
    n = shape[0] * shape[1]
    graph = tg.TokenGraph.from_tokens(torch.randn(images, n, 6, generator=g).abs(), shape).connect_grid(4)
    return graph, torch.randint(6, (images, n), generator=g)


def of(labels, k=6):
    labels = torch.unique(labels, return_inverse=True)[1]
    return tg.Assignment.from_dense(labels, int(labels.max()) + 1)


def matrix(graph):
    unit = torch.nn.functional.normalize(graph.x.double(), dim=1)
    w = torch.zeros(graph.num_nodes, graph.num_nodes, dtype=torch.float64)
    a, b = graph.edge_index
    w[a, b] = (unit[a] * unit[b]).sum(1).clamp_min(0)
    return w


def spectrum(w):
    d = w.sum(1)
    root = torch.where(d > 0, d.rsqrt(), 0.0)
    return torch.linalg.eigvalsh(torch.diag((d > 0).double()) - root[:, None] * w * root)


def test_spectral_distance_is_that_of_the_lifted_graph():
    graph, labels = case()
    a, w = of(labels), matrix(graph)
    s = torch.nn.functional.one_hot(a.cluster).double()
    up = s / s.sum(0)  # the lifted graph spreads a cluster's weights evenly over its tokens
    expected = (spectrum(w) - spectrum(up @ (s.T @ w @ s) @ up.T)).abs().mean()
    assert float(tg.quality(graph, a).spectral) == pytest.approx(float(expected), abs=1e-6)
    few = (spectrum(w)[:3] - spectrum(s.T @ w @ s)[:3]).abs().mean()
    assert float(tg.quality(graph, a, eigenvalues=3).spectral) == pytest.approx(float(few), abs=1e-6)
    assert math.isnan(float(tg.quality(graph, a, eigenvalues=0).spectral))
    with pytest.raises(ValueError, match=r"Expected eigenvalues >= 0 \(got -1\)"):
        tg.quality(graph, a, eigenvalues=-1)


def test_cut_and_modularity_are_those_of_networkx():
    nx = pytest.importorskip("networkx")
    graph, labels = case(1)
    a, other = of(labels), nx.from_numpy_array(matrix(graph).numpy())
    parts = [set((a.cluster == c).nonzero()[:, 0].tolist()) for c in range(a.num_clusters)]
    q = tg.quality(graph, a)
    assert float(q.modularity) == pytest.approx(nx.community.modularity(other, parts), abs=1e-6)
    cut = sum(nx.cut_size(other, p, weight="weight") for p in parts) / 2 / matrix(graph).sum() * 2
    assert float(q.cut) == pytest.approx(float(cut), abs=1e-6)


def test_variance_is_what_means_do_not_explain():
    graph, labels = case(2)
    graph.size = torch.rand(20, generator=torch.Generator().manual_seed(0)) + 0.5
    a, s = of(labels), graph["size"].double()
    x = graph.x.double()
    mean = (x * s[:, None]).sum(0) / s.sum()
    lifted = a.lift(a.reduce(x, s)[0])
    expected = (s * (x - lifted).square().sum(1)).sum() / (s * (x - mean).square().sum(1)).sum()
    assert float(tg.quality(graph, a).variance) == pytest.approx(float(expected), rel=1e-6)


def test_the_identity_and_one_cluster_are_the_ends():
    graph, _ = case()
    same = tg.quality(graph, tg.Assignment.identity(20))
    assert float(same.cut) == 1 and float(same.variance) == 0 and float(same.spectral) < 1e-7
    assert float(same.compactness) == pytest.approx(math.pi / 4)
    one = tg.quality(graph, tg.Assignment(torch.zeros(20, dtype=torch.long), 1))
    assert float(one.cut) == pytest.approx(0, abs=1e-7) and float(one.variance) == pytest.approx(1)
    assert float(one.compactness) == pytest.approx(4 * math.pi * 20 / 18**2)


def test_compactness_counts_the_sides_of_clusters():
    graph, _ = case(shape=(2, 3))
    labels = torch.tensor([[0, 0, 1, 0, 1, 1]])  # two L shapes of 3 patches and 8 sides
    assert float(tg.quality(graph, of(labels)).compactness) == pytest.approx(4 * math.pi * 3 / 64)


def numpy_measures(label, mask, tolerance, ignore=255):
    """Accuracy, recall and error pixel by pixel."""
    h, w = mask.shape
    rows = ((np.arange(h) + 0.5) * label.shape[0] / h).astype(int)
    columns = ((np.arange(w) + 0.5) * label.shape[1] / w).astype(int)
    pixels = label[rows[:, None], columns]
    known = (mask >= 0) & (mask != ignore)
    right = leak = 0
    for c in np.unique(pixels[known]):
        inside = [int(((pixels == c) & (mask == g)).sum()) for g in np.unique(mask[known])]
        total = sum(inside)
        right += max(inside)
        leak += sum(min(n, total - n) for n in inside)

    def border(values, ok):
        out = np.zeros(values.shape, bool)
        for y in range(h):
            for x in range(w):
                for v, u in ((y + 1, x), (y, x + 1), (y - 1, x), (y, x - 1)):
                    if 0 <= v < h and 0 <= u < w and ok[y, x] and ok[v, u] and values[y, x] != values[v, u]:
                        out[y, x] = True
        return out

    truth, ours = border(mask, known), border(pixels, np.ones_like(known))
    hit = 0
    for y, x in zip(*truth.nonzero(), strict=True):
        near = ours[max(0, y - tolerance) : y + tolerance + 1, max(0, x - tolerance) : x + tolerance + 1]
        hit += near.any()
    return right / known.sum(), hit / truth.sum(), leak / known.sum()


@pytest.mark.parametrize("tolerance", [0, 1])
@pytest.mark.parametrize("seed", range(3))
def test_measures_against_a_mask_are_those_of_a_loop(seed, tolerance):
    graph, labels = case(seed)
    g = torch.Generator().manual_seed(seed)
    mask = torch.randint(3, (4, 4), generator=g).repeat_interleave(4, 0).repeat_interleave(4, 1)[:15, :13]
    mask[:2, :5], mask[7, 7] = 255, -1
    a = of(labels)
    q = tg.quality(graph, a, mask, tolerance=tolerance)
    expected = numpy_measures(a.cluster.view(4, 5).numpy(), mask.numpy(), tolerance)
    found = [float(v) for v in (q.accuracy, q.recall, q.leakage)]
    assert found == pytest.approx(expected, abs=1e-9)


def test_clusters_that_are_the_segments_are_perfect():
    graph, _ = case(shape=(4, 4))
    labels = torch.tensor([[0, 0, 1, 1]] * 2 + [[2, 2, 2, 2]] * 2)
    mask = labels.repeat_interleave(8, 0).repeat_interleave(8, 1)
    q = tg.quality(graph, of(labels.view(1, -1)), mask, tolerance=0)
    assert (float(q.accuracy), float(q.recall), float(q.leakage)) == (1, 1, 0)
    assert math.isnan(float(tg.quality(graph, of(labels.view(1, -1)), torch.full((8, 8), 255)).accuracy))


def test_images_are_measured_alone():
    graph, labels = case(3, images=3)
    mask = torch.randint(4, (3, 16, 20), generator=torch.Generator().manual_seed(0))
    a = tg.Assignment.from_dense(labels, 6)
    whole = tg.quality(graph, a, mask)
    for b, one in enumerate(graph.split()):
        alone = tg.quality(one, tg.Assignment(labels[b], 6), mask[b])
        for name in MEASURES:
            assert float(getattr(whole, name)[b]) == pytest.approx(float(getattr(alone, name)), abs=1e-9)
    assert whole.mean()["cut"] == pytest.approx(float(whole.cut.mean()))


def test_measures_do_not_depend_on_the_numbering():
    graph, labels = case(4)
    order = torch.tensor([3, 5, 0, 1, 4, 2])
    mask = torch.randint(3, (8, 10), generator=torch.Generator().manual_seed(0))
    a, b = (tg.quality(graph, tg.Assignment(cluster, 6), mask) for cluster in (labels[0], order[labels[0]]))
    assert a.mean() == pytest.approx(b.mean(), abs=1e-9)


def test_dropped_tokens_belong_to_no_cluster():
    graph, _ = case(5)
    keep = tg.topk(torch.arange(20.0)[None], 10)
    mask = torch.zeros(4, 5, dtype=torch.long)
    q = tg.quality(graph, keep, mask)
    assert float(q.clusters) == 10 and float(q.cut) == 1 and float(q.accuracy) == 0.5
    assert float(q.variance) > 0.1 and float(q.spectral) > 0 and float(q.leakage) == 0.5


def test_soft_maps_count_by_their_heaviest_edges():
    graph, labels = case(6)
    hard = tg.Assignment(labels[0], 6)
    soft = tg.SoftAssignment(
        torch.arange(20).repeat(2),
        torch.cat([labels[0], (labels[0] + 1) % 6]),
        torch.cat([torch.full((20,), 0.7), torch.full((20,), 0.3)]),
        20,
        6,
    )
    assert tg.quality(graph, soft).mean() == pytest.approx(tg.quality(graph, hard).mean(), nan_ok=True)


def test_quality_checks_its_input():
    graph, labels = case()
    a = of(labels)
    with pytest.raises(ValueError, match=r"Expected a map over the graph's M=20 tokens \(got one over 3\)"):
        tg.quality(graph, tg.Assignment.identity(3))
    with pytest.raises(TypeError, match=r"Expected an Assignment or a SoftAssignment \(got Tensor\)"):
        tg.quality(graph, labels)
    with pytest.raises(TypeError, match=r"Expected mask as a Tensor of integers \(got torch.float32\)"):
        tg.quality(graph, a, torch.zeros(4, 4))
    with pytest.raises(ValueError, match=r"Expected mask of shape \[B=1, H, W\] \(got \[2, 4, 4\]\)"):
        tg.quality(graph, a, torch.zeros(2, 4, 4, dtype=torch.long))
    with pytest.raises(ValueError, match=r"Expected tolerance >= 0 pixels \(got -1\)"):
        tg.quality(graph, a, torch.zeros(4, 4, dtype=torch.long), tolerance=-1)
    bare = tg.TokenGraph.from_tokens(torch.ones(1, 4, 2)).connect_knn(1)
    with pytest.raises(ValueError, match=r"Expected a graph of full grids \(H, W\) .* \(got None for \[4\] tokens\)"):
        tg.quality(bare, tg.Assignment.identity(4), torch.zeros(4, 4, dtype=torch.long))
    assert math.isnan(float(tg.quality(bare, tg.Assignment.identity(4)).compactness))


def test_a_graph_of_no_weight_has_no_cut():
    graph = tg.TokenGraph.from_tokens(torch.ones(1, 3, 2)).with_edges(torch.zeros(2, 0, dtype=torch.long))
    q = tg.quality(graph, tg.Assignment.identity(3))
    assert math.isnan(float(q.cut)) and math.isnan(float(q.modularity)) and math.isnan(float(q.variance))
