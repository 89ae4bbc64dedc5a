"""Token reconstruction: weights, ties, numerics, gradients."""

import pytest
import torch
from torch.testing import assert_close

import tokengraph.select.expedite.reconstruct as module
from tokengraph.select.expedite.reconstruct import hard_labels, reconstruction_edges, token_reconstruction


def problem(images=2, tokens=30, clusters=12, channels=8, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(images, n, c, generator=generator, dtype=torch.float64).to(dtype)
        for n, c in ((tokens, channels), (clusters, channels), (clusters, 5))
    ]


def weights(x, s, **options):
    token, cluster, weight = reconstruction_edges(x, s, **options)
    out = weight.new_zeros(x.size(0) * x.size(1), s.size(1)).index_put_((token, cluster % s.size(1)), weight)
    assert torch.equal(cluster // s.size(1), token // x.size(1))  # no edge into another image
    return out.view(*x.shape[:2], -1)


@pytest.mark.parametrize("k", [1, 3, 12, 100, -1])
@pytest.mark.parametrize("t", [0.02, 1.0])
def test_reconstruction_follows_its_definition(k, t):
    x, s, y = problem()
    d2 = (x[:, :, None] - s[:, None]).square().sum(dim=3)
    far = d2 > d2.sort(dim=2).values[..., [min(k, 12) - 1]] if k > 0 else torch.zeros_like(d2, dtype=torch.bool)
    soft = (-t * d2).masked_fill(far, -torch.inf).softmax(dim=2)
    raw = (-t * d2).exp().masked_fill(far, 0.0)
    l2 = raw / raw.norm(dim=2, keepdim=True)
    options = {"inv_temperature": t, "neighbors": k}
    assert_close(token_reconstruction(x, s, y, **options), soft @ y)
    for ties in ("k", "released"):
        assert_close(weights(x, s, **options, ties=ties), soft)
        assert_close(weights(x, s, **options, normalize="l2", ties=ties), l2)


def test_reconstruction_edges_run_token_by_token_nearest_cluster_first():
    x = torch.tensor([[[0.0], [10.0]]])
    s = torch.tensor([[[9.0], [1.0], [4.0]]])
    token, cluster, weight = reconstruction_edges(x, s, neighbors=2)
    assert token.tolist() == [0, 0, 1, 1]
    assert cluster.tolist() == [1, 2, 0, 2]
    assert (weight.view(2, 2).diff() < 0).all()


def test_reconstruction_returns_a_constant_unchanged():
    x, s, y = problem()
    assert_close(token_reconstruction(x, s, torch.full_like(y, 2.5), neighbors=4), torch.full((2, 30, 5), 2.5).double())


def test_reconstruction_by_one_neighbour_is_the_hard_copy():
    x, s, y = problem()
    label = hard_labels(x, s)
    copied = y.gather(1, label[..., None].expand(-1, -1, 5))
    assert torch.equal(token_reconstruction(x, s, y, neighbors=1), copied)
    assert torch.equal(token_reconstruction(x, s, y, mode="hard"), copied)
    assert torch.equal(token_reconstruction(x, s, y, mode="hard", ties="released", normalize="l2"), copied)


def test_released_weights_over_their_sum_are_the_softmax():
    x, s, _ = problem()
    l2 = weights(x, s, neighbors=4, normalize="l2")
    assert_close(l2.norm(dim=2), torch.ones(2, 30).double())
    assert (l2.sum(dim=2) > 1).all()
    assert_close(l2 / l2.sum(dim=2, keepdim=True), weights(x, s, neighbors=4))


def test_ties_keep_the_lower_index_or_all():
    x, s = torch.zeros(1, 4, 2), torch.ones(1, 16, 2)
    _, cluster, weight = reconstruction_edges(x, s, neighbors=3)
    assert cluster.tolist() == [0, 1, 2] * 4
    assert_close(weight, torch.full((12,), 1 / 3))
    token, cluster, weight = reconstruction_edges(x, s, neighbors=3, ties="released", normalize="l2")
    assert cluster.tolist() == list(range(16)) * 4
    assert_close(weight.view(4, 16).sum(1), torch.full((4,), 4.0))


@pytest.mark.parametrize("t", [10.0, 50.0, 1e6])
def test_hot_softmax_has_no_zero_row_where_the_released_form_has(t):
    x, s, y = problem(dtype=torch.float32)
    x = x * 3
    out = weights(x, s, inv_temperature=t, neighbors=4)
    assert_close(out.sum(dim=2), torch.ones(2, 30))
    released = weights(x, s, inv_temperature=t, neighbors=4, normalize="l2", ties="released")
    assert released.isfinite().all() and (released.sum(dim=2) == 0).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_reconstruction_computes_half_precision_in_float32(dtype):
    x, s, y = (v.to(dtype) for v in problem())
    x, s = x * 20 + 200, s * 20 + 200
    assert x.float().square().sum(dim=2).min() > 65504
    options = {"inv_temperature": 0.001, "neighbors": 4}
    out = token_reconstruction(x, s, y, **options)
    assert out.dtype == dtype and out.isfinite().all()
    assert torch.equal(out, token_reconstruction(x.float(), s.float(), y.float(), **options).to(dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(token_reconstruction(x, s, y, **options), out)


@pytest.mark.parametrize("options", [{}, {"ties": "released"}, {"mode": "hard"}, {"neighbors": -1}])
def test_reconstruction_in_blocks_is_the_same(monkeypatch, options):
    x, s, _ = problem()
    whole = reconstruction_edges(x, s, **{"neighbors": 4} | options), hard_labels(x, s)
    monkeypatch.setattr(module, "LIMIT", 7 * 2 * 12)  # 7 tokens at a time
    parts = reconstruction_edges(x, s, **{"neighbors": 4} | options), hard_labels(x, s)
    assert torch.equal(whole[1], parts[1])
    for a, b in zip(whole[0], parts[0], strict=True):
        assert_close(a, b)


def test_reconstruction_takes_a_temperature_for_each_image():
    x, s, y = problem()
    both = token_reconstruction(x, s, y, inv_temperature=torch.tensor([0.1, 2.0]).double().view(2, 1, 1))
    for b, t in enumerate((0.1, 2.0)):
        assert_close(both[b], token_reconstruction(x, s, y, inv_temperature=t)[b])


@pytest.mark.parametrize("options", [{}, {"normalize": "l2"}, {"ties": "released"}, {"neighbors": -1}])
def test_reconstruction_passes_gradcheck(options):
    x, s, y = (v.requires_grad_() for v in problem(tokens=4, clusters=5, channels=3))
    options = {"neighbors": 3, "inv_temperature": 0.3} | options
    torch.autograd.gradcheck(lambda *a: token_reconstruction(*a, **options), (x, s, y))


def test_reconstruction_refuses_what_makes_no_sense():
    x, s, y = problem()
    with pytest.raises(ValueError, match=r"Expected neighbors >= 1, or -1 for all clusters \(got neighbors=0\)"):
        token_reconstruction(x, s, y, neighbors=0)
    with pytest.raises(ValueError, match=r"Expected refined with one row for each of \[B, M\] = \[2, 12\]"):
        token_reconstruction(x, s, y[:, :3])
    with pytest.raises(ValueError, match=r"Expected centers of shape \[B, M, C\]"):
        token_reconstruction(x, y, y)
    with pytest.raises(ValueError, match="Expected normalize to be one of softmax, l2"):
        token_reconstruction(x, s, y, normalize="l1")
    with pytest.raises(ValueError, match="Expected ties to be one of k, released"):
        token_reconstruction(x, s, y, ties="all")
    with pytest.raises(ValueError, match="Expected mode to be one of soft, hard"):
        token_reconstruction(x, s, y, mode="firm")
    with pytest.raises(ValueError, match=r"Expected inv_temperature as a number or tensor \(got 'auto'\)"):
        token_reconstruction(x, s, y, inv_temperature="auto")
    with pytest.raises(ValueError, match="Expected inv_temperature > 0"):
        token_reconstruction(x, s, y, inv_temperature=-1.0)


def test_released_weights_stay_finite_where_rounding_makes_a_distance_negative():
    x = problem(tokens=200, channels=64, dtype=torch.float32)[0] * 30
    l2 = weights(x, x[:, :50].contiguous(), inv_temperature=1e6, neighbors=4, normalize="l2")
    assert l2.isfinite().all()
