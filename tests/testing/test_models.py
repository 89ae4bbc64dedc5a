"""tiny_vit: what tests compare on it differs by far more than their tolerances, or they would compare nothing."""

import pytest
import torch
from needs import library

import tokengraph as tg
from tokengraph.testing import tiny_vit

library("timm")

FAR = 3e-3  # 30 times the widest tolerance of tests with such models; about a third of what there is
POOLS = [{}, {"global_pool": "avg"}, {"class_token": False, "global_pool": "avg"}]


def run(model, *attached, **options):
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if not attached:
            return model(images)
        with tg.attach(model, *attached, **options):
            return model(images)


def far(a, b):
    """The smallest over images of the largest difference."""
    return (a - b).abs().amax(dim=1).min()


@pytest.mark.parametrize("options", POOLS, ids=str)
def test_tiny_vit_tells_images_apart(options):
    one, other = run(tiny_vit(**options))
    assert (one - other).abs().max() > 0.02


@pytest.mark.parametrize("options", POOLS, ids=str)
def test_tiny_vit_notices_merging_and_the_sizes_of_what_was_merged(options):
    model = tiny_vit(**options)
    merged = run(model, "tome", 3)
    assert far(merged, run(model)) > FAR
    assert far(merged, run(model, "tome", 3, prop_attn="none")) > FAR


@pytest.mark.parametrize("options", POOLS, ids=str)
def test_tiny_vit_notices_which_tokens_are_dropped(options):
    model = tiny_vit(**options)
    longest = run(model, tg.TopK(score="norm"), {1: 8})
    assert far(longest, run(model)) > FAR
    assert far(longest, run(model, tg.Random(), {1: 8})) > FAR
