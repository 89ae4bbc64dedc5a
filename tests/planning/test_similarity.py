"""Similarity statistics of a plan's report."""

import pytest
import torch

import tokengraph as tg
from tokengraph.planning.similarity import nearest, similarities
from tokengraph.testing import tiny_vit


def test_nearest_leaves_a_token_itself_out():
    x = torch.tensor([[[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]]])
    half = 0.5**0.5
    assert nearest(x).tolist() == pytest.approx([half])
    assert nearest(torch.ones(1, 3, 2)).tolist() == pytest.approx([1.0])


def test_similarities_has_a_number_for_each_block_and_leaves_no_hook():
    model = tiny_vit(depth=2)
    images = torch.randn(10, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = similarities(model, [images])
    seen = []
    hook = model.blocks[1].register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        model(images[:8])
    hook.remove()
    assert len(found) == 2 and found[1] == pytest.approx(float(nearest(seen[0][:, 1:]).mean()), abs=1e-4)
    assert not any(block._forward_hooks for block in model.blocks)


def test_plan_shows_how_alike_tokens_are():
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plan = tg.plan(tiny_vit(), images, cost=0.8, strategies="tome", resolution=False, progress=False)
    assert len(plan.similarity) == 3 and all(0 < v <= 1 for v in plan.similarity)
    assert "cosine of a patch token with the one most similar" in str(plan)
