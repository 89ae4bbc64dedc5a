"""torch.func and double backward over attached models: they work, or the error says what does."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import tokengraph as tg
from tokengraph.testing import tiny_vit

SETTINGS = {
    "dpc-knn": (tg.DPCKNN(), {1: 0.5}),
    "expedite": (tg.Expedite(clusters=(2, 2)), {1: "cluster", 2: "reconstruct"}),
    "gtp": (tg.GTP(), 3),
    "gtp, sparse": (tg.GTP(sparsity=0.8), 3),
    "token-migration": ("token-migration", {1: 0.5, 2: "reconstruct"}),
    "tome": (tg.ToMe(), 3),
    "topk, fuse": (tg.TopK(score="norm", fuse=True), {1: 8}),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_gradients_of_gradients_come_through(name):
    x = torch.randn(2, 3, 32, 32, requires_grad=True)
    with tg.attach(tiny_vit(), *SETTINGS[name]) as handle, sdpa_kernel(SDPBackend.MATH):
        (grad,) = torch.autograd.grad(handle(x).square().sum(), x, create_graph=True)
        grad.square().sum().backward()
    assert x.grad is not None and x.grad.isfinite().all() and x.grad.norm() > 0


@pytest.mark.parametrize("name", SETTINGS)
def test_vmap_of_grad_works_or_says_what_does(name):
    x = torch.randn(2, 3, 32, 32)
    with tg.attach(tiny_vit(), *SETTINGS[name]) as handle:

        def loss(image):
            return handle(image[None]).square().sum()

        expected = torch.stack(
            [torch.autograd.grad(loss(one), one)[0] for one in (row.clone().requires_grad_() for row in x)]
        )
        try:
            got = torch.func.vmap(torch.func.grad(loss))(x)
        except RuntimeError as error:
            assert "Expected a strategy that torch.func can follow (got" in str(error)
            assert name in ("expedite", "gtp", "gtp, sparse", "token-migration")
        else:
            torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-3)
