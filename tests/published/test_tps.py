"""TPS against vectors of the published code (see reference/pruning/README.md)."""

import pytest
import torch
from pruning import stored_model
from torch.testing import assert_close

import tokengraph as tg
from tokengraph.nn.squeeze import squeeze


def test_squeezing_gives_the_published_rows(vectors):
    v = vectors("pruning", "tps_step")
    score = torch.zeros(2, 30).scatter_(1, v["kept"].long(), 1.0)
    a = tg.tps(score, v["x"], 12, tau=float(v["tau"]))
    assert_close(a.reduce(v["x"].flatten(0, 1))[0].view(2, 12, -1), v["eval_out"], rtol=0, atol=2e-6)
    host = a.lift(a.centers[:, None].float())[:, 0].long().view(2, 30) - torch.tensor([[0], [30]])
    found = host.gather(1, v["pruned"].long())
    assert torch.equal(found, v["kept"].long().gather(1, v["host"].long()))


def test_squeezing_in_training_gives_the_published_rows_and_gradients(vectors):
    v = vectors("pruning", "tps_step")
    x, pruned = v["x"].clone().requires_grad_(), v["train_now_pruned"].clone().requires_grad_()
    out = squeeze(x, v["train_keep"], pruned, tau=float(v["tau"]))
    assert_close(out, v["train_out"], rtol=0, atol=2e-6)
    (out * v["w"]).sum().backward()
    for ours, theirs in ((x.grad, v["grad_x"]), (pruned.grad, v["grad_now_pruned"])):
        assert_close(ours, theirs, rtol=0, atol=1e-5 * theirs.abs().max().item())


@pytest.mark.parametrize("variant", ["dtps", "etps"])
def test_models_are_reproduced(vectors, variant):
    v = vectors("pruning", "tps_model")
    model, how = stored_model(v)
    layers = [layer + (variant == "etps") for layer in how["layers"]]
    select = tg.TPS(variant=variant, layers=layers, ratios=how["ratios"])
    with torch.no_grad(), tg.attach(model, select) as handle:
        if variant == "dtps":
            own = {k[19:]: t for k, t in v.items() if k.startswith("sd/score_predictor.")}
            handle.select.predictors.load_state_dict(own)
            handle.select.predictors.eval()
        logits = model(v["image"])
        if variant == "dtps":
            assert handle.trace.counts[:-1] == v["tokens"].tolist() or handle.trace.counts[1:] == v["tokens"].tolist()
    assert_close(logits, v["logits" if variant == "dtps" else "own_etps_logits"], rtol=0, atol=2e-5)


def test_rows_by_hand_ties_and_identity():
    x = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [2.0, 0.0]]])
    score = torch.tensor([[3.0, 2.0, 1.0]])
    assert_close(tg.tps(score, x, 2).reduce(x[0])[0], torch.tensor([[1.5, 0.0], [1.0, 0.0]]))
    assert_close(tg.tps(score, x, 2, official=True).reduce(x[0])[0], torch.tensor([[1.5, 0.0], [1.5, 0.0]]))
    x = torch.randn(2, 9, 4)
    score = torch.rand(2, 9)
    assert torch.equal(tg.tps(score, x, 9).reduce(x.flatten(0, 1))[0], x.flatten(0, 1))
    constant = torch.ones(1, 6, 3)
    assert_close(tg.tps(torch.rand(1, 6), constant, 2).reduce(constant[0])[0], torch.ones(2, 3))


def test_no_token_kept_in_training_changes_nothing():
    x = torch.randn(1, 5, 4, requires_grad=True)
    out = squeeze(x, torch.zeros(1, 5), torch.ones(1, 5))
    assert torch.equal(out, x)
    out.sum().backward()
    assert x.grad.isfinite().all()


def test_training_moves_rows_and_masks_tokens(vectors):
    v = vectors("pruning", "tps_model")
    model, how = stored_model(v)
    with tg.attach(model, tg.TPS(layers=how["layers"], ratios=how["ratios"])) as handle:
        model.train()
        logits = model(v["image"])
        decisions = handle.trace.decisions
        assert len(decisions) == 3 and all(d.shape == (3, 64) for d in decisions)
        logits.sum().backward()
        grads = [p.grad for p in handle.select.predictors.parameters()]
    assert all(g is not None and g.isfinite().all() for g in grads)
