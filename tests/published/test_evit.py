"""EViT against vectors of the published code (see reference/pruning/README.md)."""

import pytest
import torch
from pruning import checked, sets, stored_model
from torch.testing import assert_close

import tokengraph as tg
from tokengraph.select.topk import fuse_rest


@pytest.mark.parametrize("k", [1, 10, 34, 48])
def test_fuse_rest_gives_the_published_tokens_and_their_weighted_sum(vectors, k):
    v = vectors("pruning", "evit_step")
    score = v["attn"][:, :, 0, 1:].mean(dim=1)
    kept = tg.topk(score, k)
    assert sets(kept.centers.view(3, k) - 49 * torch.arange(3)[:, None]) == sets(v[f"k{k}_kept"])
    if k == 48:  # one token fused by itself: ours is the identity
        return
    out = fuse_rest(score, k + 1).reduce(v["x"][:, 1:].flatten(0, 1))[0].view(3, k + 1, -1)
    published = v[f"k{k}_out"][:, 1:]
    order = v[f"k{k}_kept"].argsort(dim=1)
    assert_close(out[:, :k], published[:, :k].gather(1, order[..., None].expand(-1, -1, 16)), rtol=0, atol=0)
    assert_close(out[:, k], published[:, k], rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", ["evit_fused", "evit_pruned"])
def test_models_of_the_published_code_are_reproduced(vectors, name):
    v = vectors("pruning", name)
    model, how = stored_model(v)
    rates = {i + 1: r for i, r in enumerate(how["keep_rate"]) if r < 1}
    schedule = tg.schedule.evit(list(rates.values()), list(rates), fuse=how["fuse"])
    with torch.no_grad(), tg.attach(model, tg.TopK(fuse=how["fuse"]), schedule) as handle:
        logits = model(v["image"])
        checked(handle.trace, v, 3)
    assert_close(logits, v["logits"], rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("rate", "fused", "bare"),
    [(0.9, (178, 162, 147), (177, 160, 144)), (0.7, (139, 99, 71), (138, 97, 68)), (0.5, (99, 51, 27), (98, 49, 25))],
)
def test_evit_gives_the_released_counts_for_196_patches(rate, fused, bare):
    for counts, fuse in ((fused, True), (bare, False)):
        found = tg.schedule.tokens_per_layer(tg.schedule.evit(rate, fuse=fuse), 12, 196)
        assert (found[4], found[7], found[10]) == counts


def test_evit_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"Expected rates in \(0, 1\] \(got \[1.5\]\)"):
        tg.schedule.evit([1.5], [2])
    with pytest.raises(ValueError, match="Expected one rate for each of 3 layers"):
        tg.schedule.evit([0.5, 0.5])
    with pytest.raises(ValueError, match="Expected rising layers of at least 1"):
        tg.schedule.evit(0.5, (3, 2))


def test_fuse_rest_sums_the_others_by_their_scores():
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, 4.0]])
    rows = fuse_rest(torch.tensor([[0.1, 0.4, 0.2, 0.05]]), 3).reduce(x)[0]
    assert_close(rows, torch.tensor([[0.0, 1.0], [2.0, 0.0], [0.1, 0.2]]))
