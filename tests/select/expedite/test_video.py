"""Expedite on grids (T, H, W), against loops written from the specification."""

import itertools
import math

import numpy as np
import pytest
import torch

from tokengraph.select.expedite.cluster import token_clustering
from tokengraph.select.expedite.expedite import Expedite, cluster_grid, expedite
from tokengraph.select.tokens import Tokens


def clustering(x, grid, clusters, *, iterations, t, window):
    """Token clustering in float64, token by token: centres ``[M, C]``, and the candidates of each token."""
    x = x.double().numpy()
    places, cells = (list(itertools.product(*map(range, sides))) for sides in (grid, clusters))
    centers = []
    for cell in cells:  # the mean over a bin from floor(i S / s) to ceil((i + 1) S / s)
        inside = [
            n
            for n, place in enumerate(places)
            if all(
                i * S // s <= at < -(-(i + 1) * S // s) for at, i, S, s in zip(place, cell, grid, clusters, strict=True)
            )
        ]
        centers.append(x[inside].mean(axis=0))
    centers, candidates = np.stack(centers), []
    for place in places:
        own = [
            min(int(np.floor(np.float32(at) * (np.float32(s) / np.float32(S)))), s - 1)
            for at, S, s in zip(place, grid, clusters, strict=True)
        ]
        near = [m for m, c in enumerate(cells) if max(abs(a - b) for a, b in zip(own, c, strict=True)) <= window // 2]
        candidates.append(near)
    for _ in range(iterations):
        total, mass = np.zeros_like(centers), np.zeros(len(cells))
        for n, near in enumerate(candidates):
            logit = -t * ((x[n] - centers[near]) ** 2).sum(axis=1)
            q = np.exp(logit - logit.max())
            q /= q.sum()
            mass[near] += q
            total[near] += q[:, None] * x[n]
        centers = total / np.maximum(mass, 1e-16)[:, None]
    return torch.from_numpy(centers), candidates


def reconstruction(x, centers, refined, *, k, t):
    """Every token a softmax mixture of the refined clusters nearest to it, of all of them."""
    out = []
    for token in x.double():
        squared = (token - centers).square().sum(dim=1)
        near = squared.argsort(stable=True)[:k]
        out.append((-t * squared[near]).softmax(dim=0) @ refined.double()[near])
    return torch.stack(out)


CASES = [((4, 6, 6), (4, 3, 3), 5), ((5, 7, 6), (2, 4, 5), 3), ((1, 6, 5), (1, 4, 2), 3), ((6, 1, 4), (4, 1, 3), 1)]


@pytest.mark.parametrize("form", ["dense", "edges", "tiles"])
@pytest.mark.parametrize("grid, clusters, window", CASES)
def test_token_clustering_of_a_video_equals_a_loop_over_tokens(grid, clusters, window, form):
    x = torch.randn(2, math.prod(grid), 5, generator=torch.Generator().manual_seed(0))
    made, token, cluster, weight = token_clustering(
        x, grid, clusters, iterations=3, inv_temperature=0.3, window=window, form=form
    )
    for image in range(2):
        centers, candidates = clustering(x[image], grid, clusters, iterations=3, t=0.3, window=window)
        torch.testing.assert_close(made[image].double(), centers, atol=2e-5, rtol=1e-5)
    edges = [(n, m) for n, near in enumerate(candidates) for m in near]
    assert list(zip(token.tolist(), cluster.tolist(), strict=True)) == edges
    sums = torch.zeros(2, x.size(1)).index_add_(1, token, weight)
    torch.testing.assert_close(sums, torch.ones_like(sums))


@pytest.mark.parametrize("grid, clusters, window", CASES)
def test_expedite_of_a_video_comes_back_as_the_loop_says(grid, clusters, window):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(1, math.prod(grid), 5, generator=g)
    refined = torch.randn(math.prod(clusters), 3, generator=g)
    a = expedite(x, grid, clusters, iterations=2, inv_temperature=0.3, window=window, neighbors=4)
    centers, _ = clustering(x[0], grid, clusters, iterations=2, t=0.3, window=window)
    torch.testing.assert_close(a.centroids.double(), centers, atol=2e-5, rtol=1e-5)
    expected = reconstruction(x[0], centers, refined, k=4, t=0.3)
    torch.testing.assert_close(a.lift(refined).double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("form", ["dense", "edges", "tiles", "auto"])
def test_one_frame_is_the_image_bit_for_bit(form):
    x = torch.randn(2, 48, 8, generator=torch.Generator().manual_seed(2))
    video = token_clustering(x, (1, 6, 8), (1, 4, 5), form=form)
    image = token_clustering(x, (6, 8), (4, 5), form=form)
    assert all(torch.equal(a, b) for a, b in zip(video[1:], image[1:], strict=True))
    assert torch.equal(video[0], image[0])


def test_far_frames_do_not_meet_in_a_cube_of_one():
    x = torch.zeros(1, 4 * 4, 1)
    x[0, 8:] = 100.0  # the last two frames
    centers = token_clustering(x, (4, 2, 2), (2, 1, 1), window=1)[0]
    assert centers.flatten().tolist() == [0.0, 100.0]


def test_a_video_is_the_same_alone_and_in_a_batch():
    x = torch.randn(3, 4 * 6 * 6, 8, generator=torch.Generator().manual_seed(3))
    batch = expedite(x, (4, 6, 6), (4, 3, 3))
    for b in range(3):
        alone = expedite(x[b : b + 1], (4, 6, 6), (4, 3, 3))
        torch.testing.assert_close(alone.centroids, batch.centroids.view(3, 36, 8)[b])
        torch.testing.assert_close(alone.lift(alone.centroids), batch.lift(batch.centroids).view(3, -1, 8)[b])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_video_keeps_its_dtype(dtype):
    x = torch.randn(1, 4 * 6 * 6, 8, generator=torch.Generator().manual_seed(4)).to(dtype)
    a = expedite(x, (4, 6, 6), (2, 3, 3))
    assert a.centroids.dtype == dtype
    wide = expedite(x.double(), (4, 6, 6), (2, 3, 3)).centroids
    torch.testing.assert_close(a.centroids.double(), wide, atol=1e-2 if dtype != torch.float64 else 0, rtol=1e-2)


def test_padding_of_a_video_feeds_no_cluster():
    x = torch.randn(1, 3 * 4 * 4, 8, generator=torch.Generator().manual_seed(5))
    mask = torch.ones(1, 48, dtype=torch.bool)
    mask[0, 32:] = False  # a frame of padding
    spoilt = x.clone()
    spoilt[0, 32:] = 1e3
    a, b = (token_clustering(v, (3, 4, 4), (3, 2, 2), mask=mask)[0] for v in (x, spoilt))
    torch.testing.assert_close(a, b)


def test_gradients_of_a_video_are_those_of_differences():
    x = torch.randn(1, 2 * 3 * 3, 2, dtype=torch.float64, requires_grad=True)

    def step(x):
        a = expedite(x, (2, 3, 3), (2, 2, 2), iterations=2, inv_temperature=0.3, detach=False, neighbors=-1)
        return a.lift(a.centroids)

    torch.autograd.gradcheck(step, x)


def test_a_video_compiles_in_one_graph():
    def step(x):
        a = expedite(x, (4, 6, 6), (4, 3, 3))
        return a.lift(a.centroids)

    x = torch.randn(2, 4 * 6 * 6, 8, generator=torch.Generator().manual_seed(6))
    torch.testing.assert_close(torch.compile(step, fullgraph=True, backend="eager")(x), step(x))


@pytest.mark.parametrize(
    "grid, keep, expected",
    [
        ((8, 12, 12), 288, (8, 6, 6)),
        ((8, 14, 14), 800, (8, 10, 10)),
        ((3, 4, 4), 2, (2, 1, 1)),
        ((1, 4, 4), 4, (1, 2, 2)),
    ],
)
def test_cluster_grid_keeps_every_frame_while_there_is_a_cell_for_each(grid, keep, expected):
    assert cluster_grid(grid, keep) == expected
    assert Expedite().makes(keep, math.prod(grid), grid) == math.prod(expected)


def test_expedite_as_a_strategy_takes_videos():
    x = torch.randn(2, 8 * 4 * 4, 8)
    assert Expedite()(Tokens(x, grid=(8, 4, 4)), 32).num_clusters == 64
    given = Expedite(clusters=(4, 2, 2))
    assert given(Tokens(x, grid=(8, 4, 4)), 16).num_clusters == 32 and given.own_budget == 16
    assert given.cost(128, 16, 8).flops > 0
    with pytest.raises(ValueError, match=r"Expected a budget of t\*h\*w=16 tokens, .* \(got 32\)"):
        given(Tokens(x, grid=(8, 4, 4)), 32)
    with pytest.raises(ValueError, match=r"Expected as many sides in clusters as in the grid"):
        given(Tokens(x, grid=(16, 8)), 16)
    with pytest.raises(TypeError, match=r"Expected clusters as a tuple \(h, w\), or \(t, h, w\) for videos"):
        Expedite(clusters=(1, 2, 3, 4))


def trilinear(x, grid, clusters, *, iterations, t, window):
    """Token clustering in float64 over the candidates of a fractional cell number, token by token."""
    from torch.nn.functional import adaptive_avg_pool3d, interpolate

    cells = torch.tensor(list(itertools.product(*map(range, clusters))))
    number = torch.arange(len(cells)).float().view(1, 1, *clusters)
    label = interpolate(number, size=grid, mode="trilinear").flatten()
    plane, width = clusters[1] * clusters[2], clusters[2]
    own = torch.stack([(label / plane).trunc(), (label % plane / width).trunc(), label % width], dim=1)
    near = ((own[:, None] - cells).abs() <= window // 2).all(dim=2)
    x = x.double()
    s = adaptive_avg_pool3d(x.T.reshape(1, -1, *grid), clusters).flatten(2)[0].T
    for _ in range(iterations):
        q = (-t * torch.cdist(x, s).square()).masked_fill(~near, -torch.inf).softmax(dim=1)
        s = q.T @ x / q.sum(dim=0)[:, None].clamp_min(1e-16)
    return s, near


@pytest.mark.parametrize("form", ["auto", "dense", "edges"])
def test_token_clustering_with_a_trilinear_label_map_follows_the_formula(form):
    grid, clusters = (3, 4, 6), (3, 2, 3)
    x = torch.randn(2, 72, 5)
    centers, token, cluster, weight = token_clustering(
        x, grid, clusters, iterations=2, inv_temperature=0.5, window=3, label_map="trilinear", form=form
    )
    for image in range(2):
        s, near = trilinear(x[image], grid, clusters, iterations=2, t=0.5, window=3)
        torch.testing.assert_close(centers[image].double(), s, atol=1e-5, rtol=1e-5)
        assert near.nonzero().tolist() == torch.stack([token, cluster], dim=1).tolist()
        total = torch.zeros(72).index_add_(0, token, weight[image])
        torch.testing.assert_close(total, torch.ones(72))


def test_expedite_with_a_trilinear_label_map_makes_other_clusters_and_lifts():
    x = torch.randn(1, 72, 5)
    a, b = (
        expedite(x, (3, 4, 6), (3, 2, 3), inv_temperature=0.5, window=3, label_map=name)
        for name in ("nearest", "trilinear")
    )
    assert not torch.allclose(a.centroids, b.centroids, atol=1e-3)
    assert b.lift(b.centroids).shape == (72, 5)
    tokens = Tokens(x=x, grid=(3, 4, 6))
    of_strategy = Expedite(inv_temperature=0.5, window=3, label_map="trilinear", clusters=(3, 2, 3))(tokens, 18)
    assert torch.equal(of_strategy.centroids, b.centroids)


def test_a_trilinear_label_map_refuses_what_it_has_not():
    x = torch.randn(1, 16, 5)
    with pytest.raises(ValueError, match=r"Expected a grid \(T, H, W\) for label_map='trilinear' \(got \(4, 4\)\)"):
        token_clustering(x, (4, 4), (2, 2), label_map="trilinear")
    with pytest.raises(ValueError, match=r"Expected form 'dense' or 'edges' with label_map='trilinear' \(got 'tiles'"):
        token_clustering(x, (1, 4, 4), (1, 2, 2), label_map="trilinear", form="tiles")
    with pytest.raises(ValueError, match=r"Expected label_map to be one of nearest, trilinear \(got 'cubic'\)"):
        Expedite(label_map="cubic")
