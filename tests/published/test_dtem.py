"""DTEM's relaxation against vectors of the published code (see reference/merging/README.md)."""

import json

import pytest
import torch
from torch.testing import assert_close

from tokengraph.nn.relaxed_merge import relaxed_merge, relaxed_pairs


@pytest.mark.parametrize("case", range(2))
def test_shares_sizes_and_rows_of_the_published_code_are_reproduced(vectors, case):
    v = vectors("merging", "dtem_relaxed")
    how = json.loads(v["config"])[case]
    v, n = {k[3:]: t for k, t in v.items() if k.startswith(f"c{case}_")}, how["active"]
    tau = (how["tau1"], how["tau2"])
    out = relaxed_merge(v["x"], v["metric"], v["size"], how["r"], active=n, neighbors=how["k2"], tau=tau)
    assert_close(out.assign, v["assign"], rtol=0, atol=1e-5)
    assert out.active == how["left"]
    sizes = torch.cat([v["a_size"], v["b_size"]], dim=1)
    rows = torch.cat([v["x"][:, 1:n:2], v["b_x"]], dim=1)
    assert_close(out.size[:, 1:n], sizes.sort(dim=1, descending=True).values, rtol=0, atol=1e-5)
    ours = torch.cat([out.x[:, 1:n], out.size[:, 1:n, None]], dim=2)
    theirs = torch.cat([rows, sizes[..., None]], dim=2)
    apart = (ours[:, :, None] - theirs[:, None]).abs().amax(dim=3)  # sizes that tie up to rounding come in any order
    assert apart.amin(dim=1).max() < 1e-5 and apart.amin(dim=2).max() < 1e-5
    for part in (slice(0, 1), slice(n, None)):
        assert torch.equal(out.x[:, part], v["x"][:, part]) and torch.equal(out.size[:, part], v["size"][:, part])


def test_cold_pairs_are_those_of_tome():
    import tokengraph as tg

    metric = torch.randn(2, 13, 8)
    share = relaxed_pairs(metric[:, 1::2], metric[:, 2::2], 4, tau=(0.1, 1e-4))
    a = tg.tome(metric[:, 1:], 8, num_prefix=2)  # by two prefix tokens the first patch is in A, as here
    cluster = a.cluster.view(2, 12)
    for b in range(2):
        pairs = {tuple(p) for p in (share[b] > 0.5).nonzero().tolist()}
        merged = {(i, j) for i in range(6) for j in range(6) if cluster[b, 2 * i] == cluster[b, 2 * j + 1]}
        assert pairs == {(i, j) for i, j in merged} and len(pairs) == 4


def test_mass_is_kept_and_an_image_depends_on_no_other():
    x, metric, size = torch.randn(3, 16, 4), torch.randn(3, 16, 6), torch.rand(3, 16) + 0.5
    out = relaxed_merge(x, metric, size, 5)
    assert_close(out.size.sum(dim=1), size.sum(dim=1))
    mass = (out.x * out.size[..., None]).sum(dim=1)
    assert_close(mass, (x * size[..., None]).sum(dim=1), rtol=1e-4, atol=1e-4)
    alone = relaxed_merge(x[1:2], metric[1:2], size[1:2], 5)
    assert_close(out.x[1:2], alone.x)
    assert (out.assign.sum(dim=(1, 2)) <= 5 + 1e-4).all() and (out.assign.sum(dim=2) <= 1 + 1e-5).all()


def test_gradients_reach_the_metric_and_are_finite():
    x, size = torch.randn(2, 9, 4), torch.ones(2, 9)
    metric = torch.randn(2, 9, 5)
    metric[:, 3] = 0
    metric.requires_grad_()
    out = relaxed_merge(x, metric, size, 3)
    (out.x.square().sum() + out.size.square().sum()).backward()
    assert metric.grad.isfinite().all() and metric.grad.any()


@pytest.mark.parametrize("tokens", [1, 2, 3])
def test_few_tokens_and_nothing_to_merge_change_nothing(tokens):
    x, size = torch.randn(1, tokens, 4), torch.ones(1, tokens)
    for r in (0, 5):
        out = relaxed_merge(x, x, size, r)
        if r == 0 or tokens < 3:
            assert torch.equal(out.x, x) and torch.equal(out.size, size) and out.active == tokens
        else:
            assert out.active == 2


def test_what_does_not_fit_is_refused():
    x = torch.randn(1, 5, 2)
    with pytest.raises(ValueError, match=r"Expected metric and size of \[B, T\] = \[1, 5\] \(got \[1, 4\], \[1, 5\]\)"):
        relaxed_merge(x, x[:, 1:], torch.ones(1, 5), 1)
    with pytest.raises(ValueError, match=r"Expected 0 <= active <= T=5 and r >= 0 \(got active=9, r=1\)"):
        relaxed_merge(x, x, torch.ones(1, 5), 1, active=9)
    with pytest.raises(ValueError, match="Expected neighbors >= 1 and temperatures above 0"):
        relaxed_merge(x, x, torch.ones(1, 5), 1, tau=(0.1, 0.0))
