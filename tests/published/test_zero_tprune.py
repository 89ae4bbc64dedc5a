"""Zero-TPrune against vectors of an own reference (see reference/pruning/README.md)."""

import torch
from pruning import checked, kept_of, sets, stored_model
from torch.testing import assert_close

import tokengraph as tg
from tokengraph.select.parts.scores.page_rank import head_variance, page_rank, rank_importance
from tokengraph.select.zero_tprune import VARIANCE, drop_similar


def test_walks_and_importance_are_those_of_the_reference(vectors):
    v = vectors("pruning", "zerotprune_own")
    cases = {k[:-4] for k in v if k.endswith("_wpr")}
    assert len(cases) > 2
    for case in cases:
        rounds, start = case[1:].split("_")
        rank = page_rank(v["attn"], int(rounds), "sqrt" if start == "cls" else 1.0, 1)
        assert_close(rank, v[f"{case}_wpr"], rtol=1e-5, atol=1e-6)
        assert_close(head_variance(rank, 1), v[f"{case}_variance"], rtol=1e-4, atol=1e-6)
        assert_close(rank_importance(rank, 1, VARIANCE), v[f"{case}_importance"], rtol=1e-5, atol=1e-6)
        assert_close(rank.sum(dim=2), torch.ones(2, 4))


def test_both_stages_keep_the_tokens_of_the_reference(vectors):
    v = vectors("pruning", "zerotprune_own")
    first = rank_importance(page_rank(v["attn"], 1, "sqrt", 1), 1, VARIANCE)
    left = drop_similar(first, v["keys"], int(v["similar"]), None)
    assert [set(row.nonzero()[:, 0].tolist()) for row in left] == sets(v["after_similarity"])
    a = tg.zero_tprune(v["attn"], v["keys"], int(v["keep"]), int(v["similar"]), 30)
    assert kept_of(a, 2) == sets(v["kept"])


def test_the_model_of_the_reference_is_reproduced(vectors):
    v = vectors("pruning", "zerotprune_own_model")
    model, how = stored_model(v)
    plan = {int(i) + 1: tuple(each) for i, each in how["plan"].items()}
    rounds = {int(i) + 1: r for i, r in how["rounds"].items()}
    with torch.no_grad(), tg.attach(model, tg.ZeroTPrune(plan, rounds)) as handle:
        logits = model(v["image"])
        checked(handle.trace, v, 3)
    assert_close(logits, v["logits"], rtol=0, atol=2e-5)


def test_constant_maps_keep_the_lowest_indices_and_no_similar_ones_is_page_rank():
    even = torch.full((1, 2, 9, 9), 1 / 9)
    assert kept_of(tg.zero_tprune(even, torch.randn(1, 8, 4), 3, 0), 1) == [{0, 1, 2}]
    attn = torch.randn(2, 2, 9, 9).softmax(dim=3)
    best = rank_importance(page_rank(attn, 40, "sqrt", 1), 1, VARIANCE)
    assert kept_of(tg.zero_tprune(attn, torch.randn(2, 8, 4), 5, 0), 2) == kept_of(tg.topk(best, 5), 2)


def test_a_padded_image_keeps_the_same_tokens():
    attn, keys = torch.randn(1, 2, 9, 9).softmax(dim=3), torch.randn(1, 8, 4)
    padded = torch.zeros(1, 2, 12, 12)
    padded[:, :, :9, :9] = attn
    padded[:, :, 9:, :9] = 1 / 9
    mask = torch.arange(11)[None] < 8
    more = torch.cat([keys, 9 * torch.randn(1, 3, 4)], dim=1)
    a = tg.zero_tprune(padded, more, [4], mask=mask)
    assert kept_of(a, 1) == kept_of(tg.zero_tprune(attn, keys, 4), 1)


def test_the_walk_converges():
    attn = torch.randn(1, 2, 9, 9, dtype=torch.float64).softmax(dim=3)
    assert_close(page_rank(attn, 30), page_rank(attn, 50), rtol=0, atol=1e-9)
