"""ATS against vectors of the published code, image by image (see reference/pruning/README.md)."""

import pytest
import torch
from pruning import kept_of, stored_model
from torch.testing import assert_close

import tokengraph as tg
from tokengraph.select.parts.scores.importance import ppt_score


def test_scores_and_samples_of_a_step_are_the_published_ones(vectors):
    v = vectors("pruning", "ats_step")
    norms = v["v"].transpose(1, 2).flatten(2).norm(dim=2)[:, 1:]
    score = ppt_score(v["attn"][:, :, 0, 1:], norms)
    assert_close(score, v["score"], rtol=1e-5, atol=1e-6)
    found = kept_of(tg.ats(score, 24, official=True), 2)
    assert found == [set(v[f"b{b}_kept"].tolist()) for b in range(2)]
    if "b0_own_inverse" in v:
        assert kept_of(tg.ats(score, 24), 2) == [set(v[f"b{b}_own_inverse"].tolist()) for b in range(2)]


@pytest.mark.parametrize("official", [True, False])
def test_models_are_reproduced_in_one_ragged_batch(vectors, official):
    v = vectors("pruning", "ats_model")
    model, how = stored_model(v)
    own, samples = ("", how["samples"]) if official else ("own_inverse_", int(v["own_inverse_samples"]))
    select = tg.ATS(samples, [layer + 1 for layer in how["layers"]], official)
    with torch.no_grad(), tg.attach(model, select) as handle:
        logits = model(v["image"])
        counts = [handle.trace.counts_per_image(layer) for layer in range(1, how["depth"] + 1)]
    assert torch.tensor(counts).t().tolist() == v[f"{own}counts"].tolist()
    assert_close(logits, v[f"{own}logits"], rtol=0, atol=2e-5)


def test_samples_by_hand():
    score = torch.tensor([[0.1, 0.8, 0.1]])
    assert kept_of(tg.ats(score, 3), 1) == [{1}]
    assert kept_of(tg.ats(score, 3, official=True), 1) in ([{1, 2}], [{0, 1}])
    assert kept_of(tg.ats(torch.tensor([[0.05, 0.05, 0.7, 0.1, 0.1]]), 5), 1) == [{1, 2, 3}]


def test_counts_are_bounded_and_many_samples_keep_all():
    score = torch.rand(4, 20)
    for k in (1, 5, 20):
        assert all(len(kept) <= k for kept in kept_of(tg.ats(score, k), 4))
    assert all(len(kept) == 20 for kept in kept_of(tg.ats(score + 0.1, 10_000), 4))
    one_hot = torch.eye(6)[3:4]
    assert kept_of(tg.ats(one_hot, 6), 1) == [{3}]


def test_constant_scores_and_few_tokens():
    even = torch.full((1, 8), 0.125)
    assert kept_of(tg.ats(even, 4), 1) == [{0, 2, 4, 6}] or kept_of(tg.ats(even, 4), 1) == [{1, 3, 5, 7}]
    assert len(kept_of(tg.ats(even, 8), 1)[0]) == 8
    assert kept_of(tg.ats(torch.ones(1, 2), 2, official=True), 1) == [{0, 1}]
    assert kept_of(tg.ats(torch.ones(1, 1), 1), 1) == [{0}]


def test_an_image_keeps_the_same_tokens_beside_others_and_padding():
    score = torch.rand(3, 12)
    for official in (True, False):
        alone = [kept_of(tg.ats(s[None], 12, official=official), 1)[0] for s in score]
        assert kept_of(tg.ats(score, 12, official=official), 3) == alone
        padded, mask = torch.cat([score, score + 9], dim=1), torch.arange(24).expand(3, -1) < 12
        a = tg.ats(padded, 12, mask=mask, official=official)
        assert kept_of(a, 3) == alone
