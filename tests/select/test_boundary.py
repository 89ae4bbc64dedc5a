"""What all methods share at their public boundary: masks, empty input, export with a dynamic batch."""

import pytest
import torch
from quick import quick_only
from strategies import STRATEGIES

import tokengraph as tg
from tokengraph import (
    ailurus,
    algm_global,
    algm_local,
    atc,
    connected_components,
    cubist_merge,
    dpc_knn,
    grid_pool,
    k_medoids,
    mctf,
    mpm,
    pitome,
    tofu,
    token_transforming,
    tome,
    topk,
)
from tokengraph.errors import check_mask
from tokengraph.select.random import random_prune
from tokengraph.select.topk import fuse_rest
from tokengraph.testing import tiny_vit

METHODS = {
    "ailurus": lambda x, keep, mask: ailurus(x, keep, (1, x.size(1))),
    "dpc_knn": lambda x, keep, mask: dpc_knn(x, keep, mask=mask),
    "dpc_knn importance": lambda x, keep, mask: dpc_knn(x, keep, mask=mask, importance=x[..., 0]),
    "dpc_knn parity": lambda x, keep, mask: dpc_knn(x, keep, k=2, mask=mask, noise=torch.zeros(x.shape[:2])),
    "tome": lambda x, keep, mask: tome(x, keep, mask=mask),
    "pitome": lambda x, keep, mask: pitome(x, keep, mask=mask, margin=0.5),
    "pitome bsm": lambda x, keep, mask: pitome(x, keep, mask=mask, margin=0.5, mode="bsm"),
    "k_medoids": lambda x, keep, mask: k_medoids(x, keep, mask=mask),
    "k_medoids weights": lambda x, keep, mask: k_medoids(x, keep, mask=mask, weight=x[..., 0].abs()),
    "mctf": lambda x, keep, mask: mctf(x, x[..., 0].abs(), keep, mask=mask),
    "token_transforming": lambda x, keep, mask: token_transforming(x, x[..., 0], keep, mask=mask),
    "tofu": lambda x, keep, mask: tofu(x, keep, mask=mask),
    "mpm": lambda x, keep, mask: mpm(x, keep, mask=mask),
    "algm_local": lambda x, keep, mask: algm_local(x, (1, x.size(1)), 0.5, window=(1, 2), keep=keep),
    "algm_global": lambda x, keep, mask: algm_global(x, 5, keep=keep, mask=mask),
    "cubist_merge": lambda x, keep, mask: cubist_merge(
        x, (1, x.size(1)), (1, min(max(3, (x.size(1) + 1) // 2), x.size(1)))
    ),
    "atc": lambda x, keep, mask: atc(x, keep, mask=mask),
    "atc complete": lambda x, keep, mask: atc(x, keep, mask=mask, linkage="complete"),
    "connected_components": lambda x, keep, mask: connected_components(x, (1, x.size(1)), 0.5, keep),
    "topk": lambda x, keep, mask: topk(x[..., 0], keep, mask=mask),
    "fuse_rest": lambda x, keep, mask: fuse_rest(x[..., 0], keep, mask=mask),
    "grid_pool": lambda x, keep, mask: grid_pool(x[..., :2], keep, (1, x.size(1)), mask=mask),
    "random_prune": lambda x, keep, mask: random_prune(*x.shape[:2], keep, mask=mask),
}
EACH = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
MASKED = {
    k: v for k, v in METHODS.items() if k not in ("ailurus", "algm_local", "cubist_merge", "connected_components")
}
EACH_MASKED = pytest.mark.parametrize("method", MASKED.values(), ids=MASKED)


def empty(a, images, tokens):
    assert (a.num_clusters, a.num_tokens) == (0, images * tokens)
    assert a.cluster_ptr.tolist() == [0] * (images + 1)
    assert a.lift(torch.zeros(0, 3)).shape == (images * tokens, 3)


@EACH
@pytest.mark.parametrize(("images", "tokens"), [(0, 6), (2, 0), (0, 0)])
def test_empty_input_gives_an_empty_map(method, images, tokens):
    empty(method(torch.zeros(images, tokens, 4), 3, None), images, tokens)


@EACH_MASKED
@pytest.mark.parametrize(("images", "tokens"), [(0, 6), (2, 0), (0, 0)])
def test_empty_input_with_a_mask_gives_an_empty_map(method, images, tokens):
    mask = torch.ones(images, tokens, dtype=torch.bool)
    empty(method(torch.zeros(images, tokens, 4), 3, mask), images, tokens)


@pytest.mark.parametrize("method", [v for k, v in MASKED.items() if "parity" not in k])
def test_empty_batch_with_a_list_of_budgets_gives_an_empty_map(method):
    empty(method(torch.zeros(0, 6, 4), [], None), 0, 6)


@EACH_MASKED
def test_masks_of_another_shape_are_refused(method):
    with pytest.raises(ValueError, match=r"Expected mask of shape \[B, N\] = \[2, 6\] \(got \[2, 5\]\)"):
        method(torch.rand(2, 6, 4), 3, torch.ones(2, 5, dtype=torch.bool))


@pytest.mark.parametrize("method", [v for k, v in MASKED.items() if "parity" not in k])
def test_masks_of_numbers_are_refused(method):
    with pytest.raises(TypeError, match=r"Expected mask of dtype bool \(got torch.int64\)"):
        method(torch.rand(2, 6, 4), 3, torch.ones(2, 6, dtype=torch.long))


@pytest.mark.parametrize("name", ["algm_global", "mctf", "tome", "tofu", "grid_pool"])
def test_masks_with_holes_are_refused_where_order_matters(name):
    mask = torch.tensor([[True, True, False], [True, False, True]])
    with pytest.raises(ValueError, match=r"Expected real tokens first .* \(got padding in front of tokens in 1 images"):
        METHODS[name](torch.rand(2, 3, 4), 2, mask)


def test_check_mask_takes_none_and_tokens_in_front():
    x = torch.zeros(2, 3, 4)
    check_mask(None, x, leading=True)
    check_mask(torch.tensor([[True, True, False], [False, False, False]]), x, leading=True)
    check_mask(torch.tensor([[False, True, False], [True, False, True]]), x)
    with pytest.raises(TypeError, match=r"Expected mask to be a Tensor \(got list\)"):
        check_mask([[True]], x)


class Apply(torch.nn.Module):
    def __init__(self, method):
        super().__init__()
        self.method = method

    def forward(self, x):
        return self.method(x, 4, None).reduce(x.flatten(0, 1))[0]


EXPORTED = "dpc_knn k_medoids mctf token_transforming tome tofu topk fuse_rest random_prune grid_pool".split()


@pytest.mark.parametrize("name", quick_only(["dpc_knn", "tome", "token_transforming", "topk"], EXPORTED))
def test_export_with_a_dynamic_batch_equals_eager(name):
    module = Apply(METHODS[name])
    shapes = {"x": {0: torch.export.Dim("batch", min=1, max=1024)}}
    program = torch.export.export(module, (torch.rand(3, 12, 6),), dynamic_shapes=shapes).module()
    for images in (1, 5):
        x = torch.rand(images, 12, 6)
        torch.testing.assert_close(program(x), module(x))


@pytest.mark.parametrize("name", STRATEGIES)
def test_an_empty_batch_goes_through_a_model_with_every_strategy(name):
    select, schedule = STRATEGIES[name]
    model = tiny_vit()
    with torch.no_grad(), tg.attach(model, select, schedule):
        assert model(torch.zeros(0, 3, 32, 32)).shape == (0, 5)
