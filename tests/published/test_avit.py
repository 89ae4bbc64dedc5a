"""A-ViT against vectors of the published code (see reference/pruning/README.md)."""

import pytest
import torch
from needs import library
from pruning import stored_model
from torch.testing import assert_close

import tokengraph as tg
from tokengraph.losses import PonderLoss
from tokengraph.testing import tiny_vit


def attached(vectors, **options):
    v = vectors("pruning", "avit_model")
    model, how = stored_model(v)
    settings = {"scale": how["gate_scale"], "center": how["gate_center"], "eps": how["eps"]} | options
    return v, model, tg.attach(model, tg.AViT(**settings)), how


def test_the_model_of_the_published_code_is_reproduced_as_one_ragged_batch(vectors):
    v, model, handle, _ = attached(vectors)
    with torch.no_grad():
        logits = model(v["image"])
    assert_close(logits, v["logits"], rtol=0, atol=2e-5)
    seen = handle.trace.seen
    assert torch.equal(seen.ran.int(), v["layers"])
    assert_close(handle.select.pondered(seen).rho, v["rho"], rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        alone = torch.cat([model(one[None]) for one in v["image"]])
    assert_close(alone, logits, rtol=0, atol=2e-5)


def test_every_input_token_has_an_output(vectors):
    v, model, handle, _ = attached(vectors)
    with torch.no_grad():
        tokens = model.forward_features(v["image"])
    assert tokens.shape == (3, 65, 24)
    assert handle.trace.as_map().shape == (3, 24, 8, 8)
    assert_close(model.norm(handle.trace.seen.y), tokens)


@pytest.mark.parametrize(("center", "blocks"), [(1e4, 6), (-1e4, 1)])
def test_gates_that_never_or_always_halt(vectors, center, blocks):
    v, model, handle, _ = attached(vectors, center=center)
    with torch.no_grad():
        out = model(v["image"])
    assert torch.equal(handle.trace.seen.ran, torch.full((3, 65), float(blocks)))
    rho = handle.select.pondered(handle.trace.seen).rho
    assert_close(rho, torch.full((3, 65), blocks + 1.0))
    if blocks == 6:
        handle.remove()
        with torch.no_grad():
            assert_close(out, model(v["image"]), rtol=0, atol=2e-6)


def test_gradients_reach_the_weights_through_halting_scores(vectors):
    v, model, handle, _ = attached(vectors)
    model.train()
    logits = model(v["image"])
    spent = handle.select.pondered(handle.trace.seen)
    loss, terms = PonderLoss(center=3.0)(spent)
    (logits.sum() + loss).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert model.blocks[0].attn.qkv.weight.grad.any()
    assert terms["ponder"].item() == pytest.approx(spent.rho.mean().item(), rel=1e-5)


def test_the_prior_does_not_depend_on_the_order_of_the_batch(vectors):
    v, model, handle, _ = attached(vectors)
    losses = []
    for images in (v["image"], v["image"].flip(0)):
        with torch.no_grad():
            model(images)
        losses.append(PonderLoss(center=3.0)(handle.select.pondered(handle.trace.seen))[0])
    assert_close(losses[0], losses[1])
    with torch.no_grad():
        model(v["image"][:1])
    spent = handle.select.pondered(handle.trace.seen)
    assert PonderLoss(center=3.0)(spent)[0].isfinite()
    assert not PonderLoss(center=3.0, official=True)(spent)[0].isfinite()


def test_halting_by_hand():
    x1, x2 = torch.tensor([1.0]), torch.tensor([3.0])
    w1, total, rest, now = tg.halt(torch.tensor([0.5]), torch.zeros(1), torch.ones(1))
    assert not now.any()
    w2, _, rest, now = tg.halt(torch.tensor([0.6]), total, rest)
    assert now.all() and (w1 * x1 + w2 * x2).item() == 2.0 and 2 + rest.item() == 2.5
    with pytest.raises(ValueError, match="Expected eps"):
        tg.AViT(eps=0.0)


@pytest.mark.filterwarnings("ignore:The schedule removes nothing")
def test_a_schedule_gives_the_fewest_tokens_and_one_that_removes_nothing_the_plain_model():
    library("timm")
    model, images = tiny_vit(), torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    select = tg.AViT(scale=2.0, center=-30.0)  # all tokens halt behind the first block
    with torch.no_grad():
        plain = model(images)
        for schedule in (0, {1: 1.0}, {2: 16}):
            with tg.attach(model, select, schedule) as handle:
                assert torch.equal(model(images), plain) and handle.trace.counts == [16] * 4
        with tg.attach(model, select) as handle:
            model(images)
            free = handle.trace.counts_per_image(1)
        with tg.attach(model, select, {1: 12, 2: 5}) as handle:
            assert not torch.equal(model(images), plain)
            counts = [handle.trace.counts_per_image(layer) for layer in range(3)]
    assert free == [0] * 4
    assert counts == [[16] * 4, [12] * 4, [5] * 4]
