"""AiluRus against a float64 definition that looks at all pairs, and its properties."""

import pytest
import torch

from tokengraph import AiluRus, ailurus, dpc_knn
from tokengraph.edges.window import window_graph
from tokengraph.select.tokens import Tokens
from tokengraph.testing import make_tokens

INF = float("inf")


def oracle(x, keep, grid, k=5, lam=50, alpha=0.9, include_self=False):
    """One image, the specification word by word: N x N ranks and sigma, Python loops. Returns anchors and centres."""
    n, eps = x.size(0), 1e-6
    x = x.double()
    y, z = torch.arange(n) // grid[1], torch.arange(n) % grid[1]
    sigma, far = torch.full((n, n), INF).double(), torch.zeros(n, n).double()
    rank = torch.zeros(n, n, dtype=torch.long)
    for i in range(n):
        squared = (y - y[i]) ** 2 + (z - z[i]) ** 2
        order = sorted(range(n), key=lambda j: (int(squared[j]), j))
        for r, j in enumerate(order):
            rank[i, j] = r
            d = (x[i] - x[j]).norm() / x.size(1) ** 0.5
            far[i, j] = 0 if i == j else (alpha + (1 - alpha) * r / lam) * (d + eps)
            if r <= lam:
                sigma[i, j] = far[i, j]
    log_rho = torch.zeros(n).double()
    for i in range(n):
        near = sorted(v for j, v in enumerate(sigma[i].tolist()) if v < INF and (include_self or j != i))[:k]
        log_rho[i] = -sum(v * v for v in near) / len(near) if near else 0.0
    dense = sorted(range(n), key=lambda i: (-float(log_rho[i]), i))
    place = {t: p for p, t in enumerate(dense)}
    largest = max(v for v in sigma.flatten().tolist() if v < INF)
    score = {}
    for i in range(n):
        denser = [float(sigma[i, j]) for j in range(n) if place[j] < place[i] and sigma[i, j] < INF]
        delta = min(denser) if denser else largest
        score[i] = float(log_rho[i]) + float(torch.tensor(max(delta, 1e-38)).double().log())
    anchors = sorted(sorted(range(n), key=lambda i: (-score[i], place[i]))[:keep])
    center = []
    for i in range(n):
        reachable = [a for a in anchors if sigma[i, a] < INF]
        pool, table = (reachable, sigma) if reachable else (anchors, far)
        center.append(i if i in anchors else min(pool, key=lambda a: (float(table[i, a]), int(rank[i, a]))))
    return anchors, center


@pytest.mark.parametrize(
    ("grid", "keep", "options"),
    [
        ((7, 9), 16, {}),
        ((10, 10), 25, {"lam": 12, "alpha": 0.5}),
        ((10, 10), 4, {"lam": 6}),  # most tokens see no anchor
        ((1, 7), 3, {"lam": 2, "k": 9}),
        ((9, 3), 1, {"lam": 4, "alpha": 0.0}),
        ((5, 17), 20, {"alpha": 1.0, "include_self": True, "k": 3}),
        ((6, 6), 35, {"lam": 1}),
    ],
)
def test_ailurus_agrees_with_the_definition(grid, keep, options):
    x = torch.randn(2, grid[0] * grid[1], 12)
    got = ailurus(x, keep, grid, **options)
    tokens = x.size(1)
    for b in range(2):
        anchors, center = oracle(x[b], keep, grid, **options)
        ours = got.centers.view(2, keep)[b] - b * tokens
        assert ours.tolist() == anchors
        mine = ours[got.cluster.view(2, tokens)[b] - b * keep]
        assert mine.tolist() == center


def test_ailurus_with_a_full_window_is_dpc_knn():
    x = torch.randn(3, 48, 16)
    wide = ailurus(x, 11, (6, 8), lam=1000, alpha=1.0, include_self=True)
    assert torch.equal(wide.cluster, dpc_knn(x, 11).cluster)


def test_ailurus_spreads_a_constant_image_by_rank():
    got = ailurus(torch.full((1, 64, 4), 0.3), 8, (8, 8), k=5, lam=50, alpha=0.9)
    assert got.centers.tolist() == list(range(8))
    assert torch.bincount(got.cluster).tolist() == [8] * 8


def test_ailurus_keeps_anchors_within_the_window_unless_there_is_none():
    x = torch.randn(1, 400, 8)
    got = ailurus(x, 100, (20, 20), lam=20)
    near = window_graph((20, 20), 20)
    own = got.centers[got.cluster]
    token = torch.arange(400)
    inside = (near == own[:, None]).any(dim=1) | (own == token)
    is_anchor = torch.zeros(400, dtype=torch.bool)
    is_anchor[got.centers] = True
    assert (inside | ~is_anchor[near].any(dim=1)).all()


def test_ailurus_choice_does_not_see_translation_or_rotation():
    x = torch.randn(1, 64, 16)
    turn = torch.linalg.qr(torch.randn(16, 16))[0]
    plain = ailurus(x, 16, (8, 8)).cluster
    assert torch.equal(ailurus(x + 100.0, 16, (8, 8)).cluster, plain)
    assert torch.equal(ailurus(x @ turn, 16, (8, 8)).cluster, plain)


def test_ailurus_order_by_score_only_renumbers():
    x = torch.randn(1, 64, 16)
    by_index, by_score = (ailurus(x, 16, (8, 8), order=o) for o in ("index", "score"))
    assert torch.equal(by_index.centers[by_index.cluster], by_score.centers[by_score.cluster])
    assert not torch.equal(by_index.centers, by_score.centers)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keep": 0}, "Expected keep >= 1"),
        ({"k": 0}, "Expected k >= 1"),
        ({"lam": 0}, "Expected lam >= 1"),
        ({"alpha": 1.5}, r"Expected alpha in \[0, 1\] \(got alpha=1.5\)"),
        ({"grid": (3, 5)}, r"Expected a grid of N=16 patches \(got 3 x 5 = 15\)"),
        ({"order": "size"}, "Expected order to be 'index', 'score' or 'raster'"),
    ],
)
def test_ailurus_refuses(change, message):
    arguments = {"keep": 4, "grid": (4, 4)} | change
    with pytest.raises(ValueError, match=message):
        ailurus(torch.randn(1, 16, 4), arguments.pop("keep"), arguments.pop("grid"), **arguments)


def test_ailurus_refuses_nan_tokens():
    x = torch.randn(1, 16, 4)
    x[0, 3, 1] = torch.nan
    with pytest.raises(ValueError, match="Expected finite tokens .*1 rows"):
        ailurus(x, 4, (4, 4))


def test_ailurus_as_strategy_refuses_coarse_tokens():
    tokens = make_tokens(torch.randn(1, 16, 4), (4, 4))
    tokens.full = False
    with pytest.raises(ValueError, match="Expected one full patch grid"):
        AiluRus()(tokens, 4)


def test_ailurus_refuses_one_budget_an_image():
    with pytest.raises(TypeError, match=r"Expected keep as one int for all images \(got \[2, 3\]\)\. Use dpc_knn"):
        ailurus(torch.randn(2, 12, 4), [2, 3], (3, 4))


def test_ailurus_names_patch_dropout_where_the_grid_is_gone():
    with pytest.raises(ValueError, match="dropped in train mode"):
        AiluRus()(Tokens(torch.randn(1, 12, 4)), 3)
