"""PPT against vectors of the published code (see reference/pruning/README.md)."""

import pytest
import torch
from pruning import checked, stored_model
from torch.testing import assert_close

import tokengraph as tg
from tokengraph.select.parts.scores.importance import ppt_score
from tokengraph.select.ppt import score_variance


def step(vectors):
    v = vectors("pruning", "ppt_step")
    norms = v["v"].transpose(1, 2).flatten(2).norm(dim=2)[:, 1:]
    return v, ppt_score(v["attn"][:, :, 0, 1:], norms)


def test_score_and_variance_are_the_published_ones(vectors):
    v, score = step(vectors)
    assert_close(score, v["score"], rtol=1e-5, atol=1e-6)
    assert_close(score_variance(score)[0], v["variance"], rtol=1e-5, atol=1e-9)


def test_pooling_gives_the_published_rows_and_sizes(vectors):
    v, score = step(vectors)
    keep = 24 - int(v["r"])
    a = tg.ppt(score, v["keys"][:, 1:], keep, torch.inf)
    rows, size = a.reduce(v["x"][:, 1:].flatten(0, 1), v["size"][:, 1:].flatten())
    assert_close(rows.view(2, keep, -1), v["pool_x"][:, 1:], rtol=0, atol=2e-6)
    assert_close(size.view(2, keep), v["pool_size"][:, 1:], rtol=1e-5, atol=0)


@pytest.mark.parametrize(("order", "logits"), [("score", "logits"), ("index", "own_logits_index_order")])
def test_models_with_both_routes_in_one_batch_are_reproduced(vectors, order, logits):
    v = vectors("pruning", "ppt_model")
    model, how = stored_model(v)
    layers = [layer + 1 for layer in how["layers"]]
    select = tg.PPT(how["r"], layers, how["threshold"], order=order)
    with torch.no_grad(), tg.attach(model, select) as handle:
        found = model(v["image"])
        checked(handle.trace, v, 4)
        if order == "score":
            assert_close(handle.trace.size().sum(dim=1), v["final_size"][:, 1:].sum(dim=1), rtol=1e-5, atol=0)
        alone = torch.cat([model(one[None]) for one in v["image"]])
    assert_close(found, v[logits], rtol=0, atol=2e-5)
    assert_close(alone, found, rtol=0, atol=2e-5)


def test_routes_of_the_example_by_hand():
    score = torch.tensor([[0.1538, 0.4615, 0.3846]])
    assert score_variance(score)[0].item() == pytest.approx(0.02564, abs=1e-4)
    keys = torch.tensor([[[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]])
    assert tg.ppt(score, keys, 2, 0.02).cluster.tolist() == [2, 0, 1]  # prunes
    assert tg.ppt(score, keys, 2, 0.03).cluster.tolist() == tg.tome(keys, 2, num_prefix=1).cluster.tolist()  # pools


def test_an_infinite_threshold_is_tome_and_zero_prunes():
    keys, score = torch.randn(3, 16, 4), torch.rand(3, 16)
    score = score / score.sum(dim=1, keepdim=True)
    assert tg.ppt(score, keys, 10, torch.inf).cluster.equal(tg.tome(keys, 10, num_prefix=1).cluster)
    assert tg.ppt(score, keys, 10, 0.0).cluster.equal(tg.topk(score, 10).cluster)
    assert tg.ppt(score, keys, 16).cluster.tolist() == list(range(48))


def test_one_token_has_no_variance_and_equal_tokens_pool():
    assert tg.ppt(torch.ones(1, 1), torch.randn(1, 1, 4), 1).cluster.tolist() == [0]
    a = tg.ppt(torch.full((1, 8), 1 / 8), torch.ones(1, 8, 4), 5)
    rows, size = a.reduce(torch.ones(8, 3))
    assert torch.equal(rows, torch.ones(5, 3)) and size.sum() == 8


def test_a_relative_threshold_does_not_fall_with_the_number_of_tokens():
    score = torch.rand(1, 8, dtype=torch.float64)
    score = score / score.sum()
    twice = score.repeat_interleave(4, dim=1) / 4
    v = [(score_variance(s)[0] * s.size(1) ** 2).item() for s in (score, twice)]
    assert v[0] == pytest.approx(v[1], rel=0.2)
