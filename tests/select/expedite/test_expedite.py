"""Expedite as a map and as a strategy."""

import pickle

import pytest
import torch
from torch.testing import assert_close

from tokengraph.select.base import resolve
from tokengraph.select.expedite.cluster import token_clustering
from tokengraph.select.expedite.expedite import Expedite, cluster_grid, expedite
from tokengraph.select.expedite.reconstruct import token_reconstruction
from tokengraph.select.tokens import Tokens
from tokengraph.testing import make_tokens

GRID, CLUSTERS = (12, 10), (6, 4)


def features(images=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(images, 120, 8, generator=generator, dtype=torch.float64).to(dtype)


def rows(x):
    return x.flatten(0, 1)


@pytest.mark.parametrize("form", ["auto", "dense", "edges", "tiles"])
def test_expedite_reduces_to_the_centres_it_already_has(form):
    x = features()
    a = expedite(x, GRID, CLUSTERS, form=form, inv_temperature=0.2)
    pooled, size = a.reduce(rows(x))
    assert_close(pooled, a.centroids)
    assert_close(pooled.view(2, 24, 8), token_clustering(x, GRID, CLUSTERS, inv_temperature=0.2)[0])
    assert_close(size.sum(), torch.tensor(240.0, dtype=size.dtype))
    assert not a.lossy
    assert a.ptr.tolist() == [0, 120, 240] and a.cluster_ptr.tolist() == [0, 24, 48]


def test_expedite_lifts_by_reconstruction_from_any_width():
    x = features()
    y = torch.randn(48, 5, dtype=x.dtype)
    a = expedite(x, GRID, CLUSTERS, neighbors=4, inv_temperature=0.2)
    s = token_clustering(x, GRID, CLUSTERS, inv_temperature=0.2)[0]
    expected = token_reconstruction(x, s, y.view(2, 24, 5), neighbors=4, inv_temperature=0.2)
    assert_close(a.lift(y).view_as(expected), expected)
    token, _, weight = a.way_back()
    assert torch.equal(token, torch.arange(240).repeat_interleave(4))
    assert_close(weight.view(240, 4).sum(dim=1), torch.ones(240, dtype=weight.dtype))


def test_expedite_makes_the_way_back_at_the_first_lift_only(monkeypatch):
    import tokengraph.select.expedite.expedite as module

    calls, real = [], module.make_edges
    monkeypatch.setattr(module, "make_edges", lambda *a: calls.append(1) or real(*a))
    a = expedite(features(), GRID, CLUSTERS)
    assert not calls
    with torch.no_grad():
        first, second = a.lift(a.centroids), a.lift(a.centroids)
    assert len(calls) == 1 and torch.equal(first, second)


def test_expedite_can_be_pickled_before_and_after_its_first_lift():
    a = expedite(features(), GRID, CLUSTERS, neighbors=4)
    before = pickle.loads(pickle.dumps(a))
    with torch.no_grad():
        lifted = a.lift(a.centroids)
    for copy in (before, pickle.loads(pickle.dumps(a))):
        assert torch.equal(copy.lift(copy.centroids), lifted)


def test_expedite_with_padding_loses_its_mass_and_nothing_else():
    x, mask = features(), torch.ones(2, *GRID, dtype=torch.bool)
    mask[:, :, -2:] = False
    mask = mask.flatten(1)
    a = expedite(x, GRID, CLUSTERS, mask=mask, inv_temperature=0.2)
    pooled, size = a.reduce(rows(x))
    assert_close(pooled, a.centroids)
    assert a.lossy and abs(float(size.sum()) - 192.0) < 1e-6
    ones = torch.ones(48, 1, dtype=x.dtype)
    assert_close(a.lift(ones), torch.ones(240, 1, dtype=x.dtype))  # what comes back as padding is for cropping
    with pytest.raises(TypeError, match="Expected mask of dtype bool"):
        expedite(x, GRID, CLUSTERS, mask=mask.float())


def test_expedite_without_iterations_is_average_pooling():
    x = features()
    a = expedite(x, GRID, CLUSTERS, iterations=0)
    picture = x.view(2, *GRID, 8).permute(0, 3, 1, 2)
    pooled = torch.nn.functional.adaptive_avg_pool2d(picture, CLUSTERS).flatten(2).transpose(1, 2)
    assert_close(a.centroids, rows(pooled))
    assert_close(a.reduce(rows(x))[0], rows(pooled))
    assert a.lossy  # bins overlap
    assert (a.weight == 1).all()


def test_expedite_uses_one_auto_temperature_both_ways():
    x = features()
    y = torch.randn(48, 3, dtype=x.dtype)
    a = expedite(x, GRID, CLUSTERS, inv_temperature="auto", neighbors=5)
    b = expedite(x * 50, GRID, CLUSTERS, inv_temperature="auto", neighbors=5)
    assert_close(a.lift(y), b.lift(y))
    assert_close(a.weight, b.weight)


def test_expedite_takes_tau_for_one_over_the_temperature():
    x = features()
    by_tau = expedite(x, GRID, CLUSTERS, tau=4.0)
    assert torch.equal(by_tau.weight, expedite(x, GRID, CLUSTERS, inv_temperature=0.25).weight)
    with pytest.raises(ValueError, match=r"Expected inv_temperature or tau \(got both, 0.25 and 4.0\)"):
        expedite(x, GRID, CLUSTERS, inv_temperature=0.25, tau=4.0)
    with pytest.raises(ValueError, match="Expected tau > 0"):
        Expedite(tau=0.0)


def test_expedite_copies_the_nearest_cluster_in_hard_mode():
    x = features()
    a = expedite(x, GRID, CLUSTERS, mode="hard")
    y = torch.randn(48, 3, dtype=x.dtype)
    distance = torch.cdist(x, a.centroids.view(2, 24, 8))
    nearest = distance.argmin(dim=2) + torch.tensor([[0], [24]])
    assert torch.equal(a.lift(y), y[nearest.flatten()])


def test_expedite_takes_windows_as_images():
    x = features(images=4)
    a = expedite(x, GRID, CLUSTERS)
    for b in range(4):
        alone = expedite(x[b : b + 1], GRID, CLUSTERS)
        assert_close(a.centroids.view(4, 24, 8)[b], alone.centroids)
        assert_close(a.lift(a.centroids).view(4, 120, 8)[b], alone.lift(alone.centroids))


def test_expedite_works_inside_the_windows_of_a_padded_grid_and_back():
    # As a windowed backbone would: pad 10 x 7 to windows of 4, cluster each to 2 x 2, stitch, go back, crop.
    picture = torch.randn(2, 10, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    padded = torch.nn.functional.pad(picture, (0, 0, 0, 1, 0, 2), value=7.0)
    there = torch.nn.functional.pad(torch.ones(2, 10, 7, 1), (0, 0, 0, 1, 0, 2)) > 0

    def windows(x, side):
        return x.unflatten(1, (3, side)).unflatten(3, (2, side)).transpose(2, 3).reshape(12, side * side, -1)

    def stitched(x, side):
        return x.view(2, 3, 2, side, side, -1).transpose(2, 3).reshape(2, 3 * side, 2 * side, -1)

    a = expedite(windows(padded, 4), (4, 4), (2, 2), mask=windows(there, 4)[..., 0], inv_temperature=0.5, window=3)
    small = stitched(a.centroids, 2)
    assert small.shape == (2, 6, 4, 5) and small.abs().max() < picture.abs().max()  # no padding in any mean
    back = stitched(a.lift(windows(small, 2).flatten(0, 1)), 4)[:, :10, :7]
    assert (back - picture).square().mean() < picture.square().mean()
    alone = expedite(picture[:1, :4, :4].flatten(1, 2), (4, 4), (2, 2), inv_temperature=0.5, window=3)
    assert_close(small[0, :2, :2].flatten(0, 1), alone.centroids)
    assert_close(back[0, :4, :4].flatten(0, 1), alone.lift(alone.centroids))


def test_expedite_lets_gradients_reach_the_tokens_both_ways():
    x = features(images=1)[:, :12, :3].requires_grad_()

    def run(x, detach):
        a = expedite(x, (4, 3), (2, 2), neighbors=3, inv_temperature=0.3, detach=detach)
        return a.lift(a.centroids)

    torch.autograd.gradcheck(lambda x: run(x, False), x)
    (grad,) = torch.autograd.grad(run(x, True).square().sum(), x)
    assert grad.isfinite().all() and (grad != 0).any(dim=2).all()


def test_expedite_keeps_half_precision_outside():
    x = features(dtype=torch.float16)
    a = expedite(x, GRID, CLUSTERS)
    assert a.centroids.dtype == a.lift(a.centroids).dtype == torch.float16
    assert a.weight.dtype == a.way_back()[2].dtype == torch.float32


@pytest.mark.parametrize("grid", [(12, 10), (20, 20)])  # dense and tiles
def test_expedite_compiles_in_one_graph_for_any_batch(grid):
    def run(x):
        a = Expedite(clusters=(8, 6))(Tokens(x, grid=grid), 48)
        pooled, size = a.reduce(x.flatten(0, 1))
        return pooled, size, a.centroids, a.lift(pooled)

    torch.compiler.reset()
    compiled = torch.compile(run, fullgraph=True, backend="eager")
    for images in (1, 2, 3):
        x = torch.randn(images, grid[0] * grid[1], 8)
        for ours, theirs in zip(compiled(x), run(x), strict=True):
            assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("grid", "keep", "expected"),
    [
        ((40, 40), 784, (28, 28)),
        ((40, 40), 783, (27, 29)),
        ((6, 8), 30, (5, 6)),
        ((1, 7), 5, (1, 5)),
        ((7, 1), 5, (5, 1)),
        ((2, 50), 99, (2, 49)),
        ((30, 20), 1, (1, 1)),
        ((22, 76), 400, (10, 40)),
    ],
)
def test_cluster_grid_has_the_most_cells_that_the_aspect_allows(grid, keep, expected):
    assert cluster_grid(grid, keep) == expected
    assert Expedite().makes(keep, grid[0] * grid[1], grid) == expected[0] * expected[1]


def test_cluster_grid_never_exceeds_budget_or_grid():
    for height in range(1, 9):
        for width in range(1, 9):
            for keep in range(1, height * width + 1):
                h, w = cluster_grid((height, width), keep)
                assert 1 <= h <= height and 1 <= w <= width and h * w <= keep


def test_strategy_makes_what_it_says():
    tokens = Tokens(features(), grid=GRID)
    for keep in (1, 7, 50, 119, 120, 200):
        a = Expedite()(tokens, keep)
        assert a.num_clusters == 2 * Expedite().makes(keep, 120, GRID)


def test_strategy_with_given_clusters_takes_only_their_budget():
    select, tokens = Expedite(clusters=CLUSTERS), Tokens(features(), grid=GRID)
    assert select.own_budget == 24 and Expedite().own_budget is None
    assert select(tokens, 24).num_clusters == 48
    with pytest.raises(ValueError, match=r"Expected a budget of h\*w=24 tokens, as clusters=\(6, 4\) says \(got 23\)"):
        select(tokens, 23)


@pytest.mark.parametrize("select", [Expedite(), Expedite(clusters=CLUSTERS), Expedite(clusters=GRID)])
def test_strategy_that_may_keep_all_changes_nothing(select):
    x = features()
    a = select(Tokens(x, grid=GRID), 120)
    pooled, size = a.reduce(rows(x))
    assert torch.equal(pooled, rows(x)) and (size == 1).all() and not a.lossy
    assert torch.equal(a.lift(pooled), pooled)


def test_strategy_is_found_by_name_and_says_how_it_works():
    select = resolve("expedite")
    assert isinstance(select, Expedite)
    assert (select.placement, select.merges, select.needs_grid, select.reads_attention) == (
        "before",
        False,
        True,
        False,
    )


def test_strategy_wants_the_full_grid_alike_for_all_images():
    x = features()
    for tokens in (
        Tokens(x),
        Tokens(x, grid=GRID, full=False),
        Tokens(x, grid=GRID, mask=torch.ones(2, 120, dtype=torch.bool)),
    ):
        with pytest.raises(ValueError, match="Expected one full patch grid for all images"):
            Expedite()(tokens, 24)
    with pytest.raises(ValueError, match="Expected one full patch grid for all images"):
        Expedite()(Tokens(x, grid=GRID), [24, 20])


def test_strategy_keeps_no_state_between_calls():
    select, x = Expedite(), features()
    first = select(make_tokens(x, GRID), 24)
    before = first.lift(first.centroids)
    select(make_tokens(x * 2 + 1, GRID), 24)
    assert torch.equal(first.lift(first.centroids), before)
    assert vars(select) == vars(Expedite())


def test_strategy_counts_its_cost_by_the_pairs_it_multiplies():
    cost = Expedite(clusters=(28, 28)).cost(1600, 784, 1024)
    clustering, reconstruction = 4 * 5 * 49 * 36 * 64 * 1024, 2 * 1600 * 784 * 1024
    assert clustering + reconstruction < cost.flops < 1.02 * (clustering + reconstruction)


def test_strategy_refuses_bad_options():
    with pytest.raises(ValueError, match="Expected h >= 1"):
        Expedite(clusters=(0, 4))
    with pytest.raises(TypeError, match=r"Expected clusters as a tuple \(h, w\), or \(t, h, w\) .* \(got 784\)"):
        Expedite(clusters=784)
    with pytest.raises(ValueError, match="Expected an odd window"):
        Expedite(window=2)
    with pytest.raises(ValueError, match="Expected neighbors >= 1"):
        Expedite(neighbors=0)
