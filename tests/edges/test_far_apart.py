"""Neighbours, clusters and weights where products of float32 lose digits: groups far apart, tiny and huge tokens."""

import pytest
import torch
from torch.testing import assert_close

import tokengraph as tg
from tokengraph.edges import knn_neighbors
from tokengraph.select.expedite.reconstruct import hard_labels


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def groups(step, tokens=196, width=64, images=1):
    x = seeded(images, tokens, width)
    x[:, tokens // 2 :] += step
    return x


def exact(x, k, loop=False):
    """Neighbours by float64 differences, ties to the lower index."""
    x = x.double()
    squared = (x[:, None] - x[None]).square().sum(2)
    squared.fill_diagonal_(-1.0 if loop else torch.inf)
    value, index = squared.sort(dim=1, stable=True)
    return index[:, :k], value[:, :k].clamp_min(0.0).sqrt()


def test_knn_graph_of_numbers_far_from_zero():
    index, weight = tg.knn_graph(torch.tensor([[512695.0], [512804.0], [5000.0], [6500.0]]), 1)
    assert index[0].tolist() == [1, 0, 3, 2]
    assert weight.tolist() == [109.0, 109.0, 1500.0, 1500.0]


CASES = {
    "groups": groups(1e3)[0],
    "positions": seeded(200, 2) * 1e4 + torch.arange(200)[:, None] % 3 * 1e7,
    "unit": torch.nn.functional.normalize(seeded(1, 64) + 1e-5 * seeded(100, 64, seed=1)),
    "huge": seeded(50, 8) * 1e30,
    "tiny": seeded(50, 8) * 1e-22,
    "ordinary": seeded(300, 384),
    "pairs": torch.cat([groups(1e3)[0], groups(1e3)[0]]),
}


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_knn_neighbors_are_those_of_float64_differences(name, loop):
    index, distance = knn_neighbors(CASES[name], 5, loop=loop)
    expected, length = exact(CASES[name], 5, loop)
    assert torch.equal(index, expected)
    assert_close(distance.double(), length, rtol=1e-5, atol=0.0)


def test_knn_neighbors_of_ragged_images_far_apart():
    x = CASES["groups"]
    index, distance = knn_neighbors(torch.cat([x[:150], x[50:90]]), 5, ptr=torch.tensor([0, 150, 190]))
    for rows, first, alone in ((slice(0, 150), 0, x[:150]), (slice(150, 190), 150, x[50:90])):
        expected, length = exact(alone, 5)
        assert torch.equal(index[rows] - first, expected)
        assert_close(distance[rows].double(), length, rtol=1e-5, atol=0.0)


def test_knn_neighbors_puts_equal_tokens_at_zero():
    _, distance = knn_neighbors(CASES["pairs"], 1)
    assert not distance.any()


def test_knn_neighbors_refuses_distances_beyond_float32():
    with pytest.raises(ValueError, match="Expected distances that fit torch.float32"):
        knn_neighbors(torch.tensor([[3e38], [-3e38]]), 1)


@pytest.mark.parametrize("step", [300.0, 1000.0, 1e5])
def test_density_peaks_of_groups_far_apart_are_those_of_float64(step):
    x = groups(step, images=2)
    for choose in (lambda y: tg.dpc_knn(y, 49), lambda y: tg.ailurus(y, 49, (14, 14))):
        assert torch.equal(choose(x).cluster, choose(x.double()).cluster)


@pytest.mark.parametrize("step", [300.0, 1000.0])
def test_expedite_of_groups_far_apart_is_that_of_float64(step):
    x = groups(step)
    weight = tg.token_clustering(x, (14, 14), (7, 7))[3]
    assert_close(weight.double(), tg.token_clustering(x.double(), (14, 14), (7, 7))[3], rtol=0.0, atol=1e-4)
    centers = x[:, ::4]
    assert torch.equal(hard_labels(x, centers), hard_labels(x.double(), centers.double()))
    back = tg.token_reconstruction(x, centers, centers)
    expected = tg.token_reconstruction(*(t.double() for t in (x, centers, centers)))
    assert_close(back.double(), expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("width", [3, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dpc_knn_of_whole_numbers_gives_exact_ties_to_the_lower_index(width, dtype):
    seen = 0
    for seed in range(60):
        x = torch.randint(-3, 4, (1, 12, width), generator=torch.Generator().manual_seed(seed)).to(dtype)
        squared = (x[0, :, None] - x[0]).square().sum(2)
        density = squared.sort(dim=1).values[:, :2].sum(1)  # whole numbers: ties are exact
        order = (density.double() + torch.arange(12) * 1e-6).argsort()
        rank = torch.empty(12, dtype=torch.long).scatter_(0, order, torch.arange(12))
        delta = torch.where(rank[None] < rank[:, None], squared, squared.max()).amin(1)
        score = -density.double() / 2 / width + 0.5 * (delta.double() / width).clamp_min(1e-38).log()
        best = score.sort(descending=True).values
        if (best[:3] - best[1:4]).min() < 1e-5:
            continue  # a tie of scores, which logarithms round
        seen += 1
        assert torch.equal(tg.dpc_knn(x, 3, k=2).centers, score.topk(3).indices.sort().values), seed
    assert seen >= 5


@pytest.mark.parametrize("width", [7, 33, 64, 65, 384])
def test_tome_of_equal_tokens_chooses_alike_alone_in_a_batch_and_padded(width):
    for seed, tokens in enumerate((9, 20, 33, 47)):
        one = seeded(1, 1, width, seed=seed).expand(1, tokens, width)
        keep = tokens - tokens // 3
        alone = tg.tome(one, keep).cluster
        batch = tg.tome(one.repeat(5, 1, 1), keep).cluster.view(5, tokens)
        assert torch.equal(batch - torch.arange(5)[:, None] * keep, alone.expand(5, -1))
        padded = seeded(2, tokens + 13, width, seed=9)
        padded[0, :tokens], padded[0, tokens:] = one[0], 0.0
        mask = torch.arange(tokens + 13) < torch.tensor([[tokens], [tokens + 13]])
        assert torch.equal(tg.tome(padded, [keep, tokens + 13], mask=mask).cluster[:tokens], alone)
