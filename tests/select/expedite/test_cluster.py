"""Token clustering: its properties, forms, numerics, gradients."""

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tokengraph.edges.cells import cell_edges, label_map
from tokengraph.select.expedite.cluster import token_clustering

FORMS = ["dense", "edges", "tiles"]
GRIDS = [
    ((8, 8), (4, 4)),
    ((12, 20), (6, 10)),
    ((15, 13), (6, 5)),
    ((5, 4), (9, 2)),
    ((1, 9), (1, 4)),
    ((20, 20), (14, 14)),
]


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation makes, inside."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor))])
        return out


def features(grid, images=2, channels=16, seed=0, dtype=torch.float64):
    """Smooth regions and noise, as features of a picture are; distances of about one."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    wave = torch.rand(images, 2, channels, generator=generator, dtype=torch.float64)
    smooth = torch.sin(y.flatten()[:, None] * wave[:, None, 0] + x.flatten()[:, None] * wave[:, None, 1])
    noise = torch.randn(images, grid[0] * grid[1], channels, generator=generator, dtype=torch.float64)
    return (smooth + 0.2 * noise).to(dtype)


def definition(x, grid, clusters, iterations, t, window):
    """The specification word by word on dense matrices: centres and q ``[B, N, M]``."""
    h, w = clusters
    centers = []
    for i in range(h):
        for j in range(w):
            rows = slice(i * grid[0] // h, -(-(i + 1) * grid[0] // h))
            columns = slice(j * grid[1] // w, -(-(j + 1) * grid[1] // w))
            centers.append(x.view(x.size(0), *grid, -1)[:, rows, columns].mean(dim=(1, 2)))
    s, q = torch.stack(centers, dim=1), None
    label, cell, r = label_map(grid, clusters)[:, None], torch.arange(h * w), window // 2
    allowed = ((label // w - cell // w).abs() <= r) & ((label % w - cell % w).abs() <= r)
    for _ in range(iterations):
        d2 = (x[:, :, None] - s[:, None]).square().sum(dim=3)
        q = (-t * d2).masked_fill(~allowed, -torch.inf).softmax(dim=2)
        s = q.transpose(1, 2) @ x / q.sum(dim=1)[..., None].clamp_min(1e-16)
    return s, q


def dense(grid, clusters, token, cluster, weight):
    q = weight.new_zeros(weight.size(0), grid[0] * grid[1], clusters[0] * clusters[1])
    q[:, token, cluster] = weight
    return q


@pytest.mark.parametrize(("grid", "clusters"), GRIDS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("window", [1, 3, 5, 7])
def test_token_clustering_follows_its_definition(grid, clusters, form, window):
    x = features(grid)
    s, token, cluster, weight = token_clustering(
        x, grid, clusters, iterations=3, inv_temperature=0.3, window=window, form=form, empty="zero"
    )
    expected, q = definition(x, grid, clusters, 3, 0.3, window)
    assert_close(s, expected, atol=1e-9, rtol=0)
    assert_close(dense(grid, clusters, token, cluster, weight), q, atol=1e-9, rtol=0)


@pytest.mark.parametrize(("grid", "clusters"), GRIDS)
def test_token_clustering_is_the_same_in_all_forms_in_float32(grid, clusters):
    x = features(grid, dtype=torch.float32)
    results = [token_clustering(x, grid, clusters, form=form) for form in FORMS]
    for other in results[1:]:
        assert_close(other[0], results[0][0], atol=1e-5, rtol=0)
        assert_close(other[3], results[0][3], atol=1e-5, rtol=0)


@pytest.mark.parametrize("form", ["auto", "edges", "dense"])
def test_token_clustering_makes_nothing_of_tokens_by_clusters(form):
    grid, clusters, pairs = (46, 48), (32, 31), 46 * 48 * 32 * 31
    x = torch.randn(1, 46 * 48, 3, requires_grad=True)
    with LargestTensor() as seen:
        token_clustering(x, grid, clusters, form=form)[0].sum().backward()
    assert (seen.numel >= pairs) == (form == "dense")
    assert form == "dense" or seen.numel < pairs / 8


@pytest.mark.parametrize("form", FORMS)
def test_token_clustering_conserves_tokens_and_mass(form):
    grid, clusters = (12, 20), (6, 10)
    x = features(grid)
    s, token, cluster, weight = token_clustering(x, grid, clusters, inv_temperature=0.5, form=form)
    q = dense(grid, clusters, token, cluster, weight)
    assert_close(q.sum(dim=2), torch.ones_like(q[..., 0]))
    assert_close(q.sum(dim=(1, 2)), torch.full((2,), 240.0, dtype=x.dtype))
    assert_close((s * q.sum(dim=1)[..., None]).sum(dim=1), x.sum(dim=1))


def test_token_clustering_keeps_centres_within_the_range_of_the_tokens():
    x = features((12, 20))
    s = token_clustering(x, (12, 20), (6, 10), inv_temperature=2.0)[0]
    assert (s <= x.amax(dim=1, keepdim=True) + 1e-12).all()
    assert (s >= x.amin(dim=1, keepdim=True) - 1e-12).all()


@pytest.mark.parametrize("form", FORMS)
def test_token_clustering_of_constant_tokens_is_constant(form):
    s = token_clustering(torch.full((1, 64, 3), 0.37), (8, 8), (4, 4), form=form)[0]
    assert_close(s, torch.full_like(s, 0.37), atol=1e-7, rtol=0)


def test_token_clustering_commutes_with_moving_scaling_and_turning_the_features():
    grid, clusters, t = (12, 20), (6, 10), 0.4
    x = features(grid)
    s = token_clustering(x, grid, clusters, inv_temperature=t)[0]
    shift = torch.arange(16, dtype=x.dtype)
    assert_close(token_clustering(x + shift, grid, clusters, inv_temperature=t)[0], s + shift)
    assert_close(token_clustering(x * 3, grid, clusters, inv_temperature=t / 9)[0], s * 3)
    turn = torch.linalg.qr(torch.randn(16, 16, dtype=x.dtype)).Q
    assert_close(token_clustering(x @ turn, grid, clusters, inv_temperature=t)[0], s @ turn)


def test_token_clustering_never_raises_its_objective():
    grid, clusters, t = (12, 20), (6, 10), 1.5
    x = features(grid)
    token, cluster, _ = cell_edges(grid, clusters, 5)
    energy = []
    for iterations in range(7):
        s = token_clustering(x, grid, clusters, iterations=iterations, inv_temperature=t)[0]
        d2 = (x[:, :, None] - s[:, None]).square().sum(dim=3)
        barred = torch.full_like(d2, -torch.inf)
        barred[:, token, cluster] = 0
        energy.append(-(barred - t * d2).logsumexp(dim=2).sum() / t)
    assert (torch.stack(energy).diff() < 0).all()


def test_token_clustering_with_window_one_stays_at_the_cell_means():
    x = features((12, 20))
    means = token_clustering(x, (12, 20), (6, 10), iterations=0)[0]
    for iterations in (1, 4):
        assert_close(token_clustering(x, (12, 20), (6, 10), iterations=iterations, window=1)[0], means)


def flipped(grid, clusters):
    x = features(grid).view(2, *grid, 16)
    once = token_clustering(x.flatten(1, 2), grid, clusters, inv_temperature=0.3)[0].view(2, *clusters, 16)
    twice = token_clustering(x.flip(1, 2).flatten(1, 2), grid, clusters, inv_temperature=0.3)[0]
    return once, twice.view_as(once).flip(1, 2)


def test_token_clustering_turns_with_an_evenly_divided_grid_only():
    assert_close(*flipped((16, 16), (8, 8)))
    straight, turned = flipped((12, 12), (8, 8))
    assert (straight - turned).abs().max() > 1e-3


@pytest.mark.parametrize("form", FORMS)
def test_token_clustering_treats_images_alone(form):
    x = features((10, 10), images=4, dtype=torch.float32)
    x[1] *= 100
    together = token_clustering(x, (10, 10), (7, 7), form=form, inv_temperature="auto")
    alone = token_clustering(x[2:3], (10, 10), (7, 7), form=form, inv_temperature="auto")
    assert_close(together[0][2:3], alone[0], atol=1e-6, rtol=0)
    assert_close(together[3][2:3], alone[3], atol=1e-6, rtol=0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("empty", ["keep", "zero"])
@pytest.mark.parametrize("t", [5.0, 50.0, 1e6])
def test_token_clustering_with_a_hot_temperature_has_no_nan(form, empty, t):
    x = features((16, 16), dtype=torch.float32) * 5
    s = token_clustering(x, (16, 16), (8, 8), inv_temperature=t, empty=empty, form=form)[0]
    assert s.isfinite().all()


@pytest.mark.parametrize("form", FORMS)
def test_token_clustering_keeps_or_zeroes_a_cluster_that_no_token_is_near_enough_to(form):
    # The second cell's average, 5, lies between its own tokens, which the first and the third fit exactly.
    x = torch.tensor([0.0, 0.0, 0.0, 10.0, 10.0, 10.0]).view(1, 6, 1)
    options = {"iterations": 1, "inv_temperature": 50.0, "window": 3, "form": form}
    kept = token_clustering(x, (1, 6), (1, 3), empty="keep", **options)[0]
    assert kept.flatten().tolist() == [0.0, 5.0, 10.0]
    zeroed = token_clustering(x + 1, (1, 6), (1, 3), empty="zero", **options)[0]
    assert zeroed.flatten().tolist() == [1.0, 0.0, 11.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
def test_token_clustering_computes_half_precision_in_float32(dtype, form):
    x = (features((16, 16), channels=32) * 60 + 100).to(dtype)
    assert x.float().square().sum(dim=2).min() > 65504
    s, _, _, weight = token_clustering(x, (16, 16), (8, 8), inv_temperature=1e-4, form=form)
    expected = token_clustering(x.float(), (16, 16), (8, 8), inv_temperature=1e-4, form=form)
    assert s.dtype == dtype and weight.dtype == torch.float32
    assert torch.equal(s, expected[0].to(dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(token_clustering(x, (16, 16), (8, 8), inv_temperature=1e-4, form=form)[0], s)


def test_token_clustering_is_exact_far_from_the_origin():
    x = features((12, 20), dtype=torch.float32)
    near = token_clustering(x, (12, 20), (6, 10), inv_temperature=0.5)[3]
    far = token_clustering(x + 1024.0, (12, 20), (6, 10), inv_temperature=0.5)[3]
    rounded = (x + 1024.0) - 1024.0  # what float32 keeps of the features themselves
    same = token_clustering(rounded, (12, 20), (6, 10), inv_temperature=0.5)[3]
    assert_close(far, same, atol=1e-4, rtol=0)
    assert_close(far, near, atol=1e-2, rtol=0)


def test_token_clustering_auto_temperature_follows_the_scale_of_each_image():
    x = features((12, 20))
    grown = x * torch.tensor([1.0, 30.0], dtype=x.dtype)[:, None, None]
    s = token_clustering(x, (12, 20), (6, 10), inv_temperature="auto")[0]
    t = token_clustering(grown, (12, 20), (6, 10), inv_temperature="auto")[0]
    assert_close(t[1], s[1] * 30)
    own = token_clustering(x[:1], (12, 20), (6, 10), iterations=0)[0][:, label_map((12, 20), (6, 10))]
    by_hand = float(5 / (x[:1] - own).square().sum(dim=2).median())
    assert_close(token_clustering(x[:1], (12, 20), (6, 10), inv_temperature=by_hand)[0], s[:1])
    assert token_clustering(torch.ones(1, 240, 2), (12, 20), (6, 10), inv_temperature="auto")[0].isfinite().all()


@pytest.mark.parametrize("form", FORMS)
def test_token_clustering_passes_gradcheck(form):
    x = features((4, 5), images=2, channels=3).requires_grad_()

    def run(x, detach):
        return token_clustering(x, (4, 5), (2, 3), iterations=2, inv_temperature=0.5, form=form, detach=detach)

    torch.autograd.gradcheck(lambda x: run(x, False)[0], x)
    torch.autograd.gradcheck(lambda x: run(x, False)[3], x)
    assert run(x, True)[3].requires_grad is False


@pytest.mark.parametrize("form", FORMS)
def test_token_clustering_detached_gives_tokens_their_share_of_the_last_average(form):
    x = features((4, 5), images=1, channels=3).requires_grad_()
    s, token, cluster, weight = token_clustering(x, (4, 5), (2, 3), inv_temperature=0.5, form=form)
    (grad,) = torch.autograd.grad(s[0, 1].sum(), x)
    q = dense((4, 5), (2, 3), token, cluster, weight)[0, :, 1]
    assert_close(grad[0], (q / q.sum())[:, None].expand(-1, 3))


def test_token_clustering_without_iterations_on_the_full_grid_changes_nothing():
    x = features((4, 5))
    s, token, cluster, weight = token_clustering(x, (4, 5), (4, 5), iterations=0)
    assert_close(s, x)
    assert torch.equal(token, cluster) and (weight == 1).all()


def padding(grid):
    """True but for the last three columns, and all of the second image's last rows."""
    mask = torch.ones(2, *grid, dtype=torch.bool)
    mask[:, :, -3:] = False
    mask[1, -2:] = False
    return mask.flatten(1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", [{}, {"inv_temperature": "auto"}, {"iterations": 0}, {"empty": "zero"}], ids=str)
def test_token_clustering_does_not_see_what_padding_holds(form, options):
    grid, clusters = (12, 20), (6, 10)
    x, mask = features(grid), padding(grid)
    options = {"inv_temperature": 0.5, "form": form, "mask": mask} | options
    s, token, _, weight = token_clustering(x, grid, clusters, **options)
    again = token_clustering(torch.where(mask[..., None], x, 1e4), grid, clusters, **options)
    assert_close(again[0], s)
    assert_close(again[3], weight)
    assert not weight[~mask[:, token]].any()
    published = token_clustering(x, grid, clusters, **{**options, "mask": None})[0]
    assert (published - s).abs().max() > 1e-2
    assert torch.equal(token_clustering(x, grid, clusters, **{**options, "mask": mask | True})[0], published)


@pytest.mark.parametrize("form", FORMS)
def test_token_clustering_with_padding_conserves_the_mass_of_the_real_tokens(form):
    grid, clusters = (12, 20), (6, 10)
    x, mask = features(grid), padding(grid)
    s, token, cluster, weight = token_clustering(x, grid, clusters, inv_temperature=0.5, form=form, mask=mask)
    q = dense(grid, clusters, token, cluster, weight)
    assert_close(q.sum(dim=2), mask.to(q))
    assert_close((s * q.sum(dim=1)[..., None]).sum(dim=1), (x * mask[..., None]).sum(dim=1))


def test_token_clustering_starts_a_cell_of_padding_at_the_average_of_its_image():
    x = torch.tensor([1.0, 2.0, 3.0, 6.0, 9.0, 9.0]).view(1, 6, 1)
    mask = torch.tensor([[True, True, True, True, False, False]])
    s, token, _, weight = token_clustering(x, (1, 6), (1, 3), iterations=0, mask=mask)
    assert s.flatten().tolist() == [1.5, 4.5, 3.0]
    assert weight.tolist() == mask[:, token].float().tolist()
    half = torch.tensor([[True, True, True, False, False, False]])
    assert token_clustering(x, (1, 6), (1, 3), iterations=0, mask=half)[0].flatten().tolist() == [1.5, 3.0, 2.0]
    nothing = token_clustering(x, (1, 6), (1, 3), mask=mask & False)
    assert not nothing[0].any() and not nothing[3].any()


def test_token_clustering_with_padding_passes_gradcheck():
    x, mask = features((4, 5), channels=3).requires_grad_(), padding((4, 5))

    def run(x):
        options = {"iterations": 2, "inv_temperature": 0.5, "detach": False, "mask": mask}
        return token_clustering(x, (4, 5), (2, 3), **options)[0]

    torch.autograd.gradcheck(run, x)
    (grad,) = torch.autograd.grad(run(x).square().sum(), x)
    assert not grad[~mask].any() and (grad[mask] != 0).any(dim=1).all()


def test_token_clustering_accepts_an_empty_batch():
    s, token, _, weight = token_clustering(torch.zeros(0, 64, 3), (8, 8), (4, 4))
    assert s.shape == (0, 16, 3) and weight.shape == (0, token.numel())


def test_token_clustering_refuses_what_makes_no_sense():
    x = torch.zeros(1, 64, 3)
    with pytest.raises(ValueError, match=r"Expected a grid of N=64 patches \(got 8 x 9 = 72\)"):
        token_clustering(x, (8, 9), (4, 4))
    with pytest.raises(ValueError, match="Expected an odd window"):
        token_clustering(x, (8, 8), (4, 4), window=4)
    with pytest.raises(TypeError, match=r"Expected clusters as two ints, rows and columns, or three .* \(got 16\)"):
        token_clustering(x, (8, 8), 16)  # released: one int, which must be a perfect square
    with pytest.raises(ValueError, match="Expected iterations >= 0"):
        token_clustering(x, (8, 8), (4, 4), iterations=-1)
    with pytest.raises(ValueError, match="Expected inv_temperature > 0 or 'auto'"):
        token_clustering(x, (8, 8), (4, 4), inv_temperature=0.0)
    with pytest.raises(ValueError, match="Expected empty to be one of keep, zero"):
        token_clustering(x, (8, 8), (4, 4), empty="drop")
    with pytest.raises(ValueError, match="Expected form to be one of auto, dense, edges, tiles"):
        token_clustering(x, (8, 8), (4, 4), form="sparse")
    with pytest.raises(ValueError, match=r"Expected mask of shape \[B, N\] = \[1, 64\]"):
        token_clustering(x, (8, 8), (4, 4), mask=torch.ones(1, 8, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match="Expected finite tokens"):
        token_clustering(x / 0, (8, 8), (4, 4))
