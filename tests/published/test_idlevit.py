"""IdleViT against vectors of the published code (see reference/pruning/README.md)."""

import pytest
import torch
from pruning import kept_of, sets, stored_model
from torch.testing import assert_close

import tokengraph as tg


def attached(vectors, **options):
    v = vectors("pruning", "idlevit_model")
    model, how = stored_model(v)
    return v, model, tg.attach(model, tg.IdleViT(layers=how["layers"], ratios=how["ratios"], **options)), how


def test_the_model_of_the_published_code_is_reproduced(vectors):
    v, model, handle, how = attached(vectors)
    with torch.no_grad():
        assert_close(model(v["image"]), v["logits"], rtol=0, atol=2e-5)
    trace = handle.trace
    assert trace.counts == [64] * 7 and trace.counts_inside == [64, 44, 44, 32, 32, 19]
    for j, layer in enumerate(how["layers"]):
        assert kept_of(trace.inside(layer), 3) == sets(v[f"s{j}_kept"])


def test_queries_and_keys_by_projection_choose_as_weights_do(vectors, monkeypatch):
    v, model, handle, how = attached(vectors)
    monkeypatch.setattr(type(handle.trace.run.plans.request.adapter), "class_logits", lambda *args: None)
    with torch.no_grad():
        assert_close(model(v["image"]), v["logits"], rtol=0, atol=2e-5)


def test_idle_tokens_pass_their_block_bit_for_bit_and_come_back(vectors):
    v, model, handle, how = attached(vectors)
    rows = []
    for block in model.blocks:
        block.register_forward_hook(lambda m, args, out: rows.append((args[0], out)))
    with torch.no_grad():
        model(v["image"])
    before = None
    returned = 0
    for layer in how["layers"]:
        a = handle.trace.inside(layer)
        idle = (a.cluster == a.num_clusters).view(3, 64)
        x, out = rows[layer]
        assert torch.equal(x[:, 1:][idle], out[:, 1:][idle])
        assert (x[:, 1:][~idle] != out[:, 1:][~idle]).any(dim=1).all()
        returned += 0 if before is None else int((before & ~idle).sum())
        before = idle
    assert returned > 0


def test_lift_is_the_identity(vectors):
    v, model, handle, _ = attached(vectors)
    with torch.no_grad():
        model(v["image"])
    x = torch.randn(3, 64, 5)
    assert torch.equal(handle.trace.lift(x), x)


def test_a_share_of_one_runs_the_plain_model(vectors):
    v = vectors("pruning", "idlevit_model")
    model, _ = stored_model(v)
    with torch.no_grad():
        plain = model(v["image"])
        with tg.attach(model, tg.IdleViT(1.0)):
            assert torch.equal(model(v["image"]), plain)


def test_cut_losses_of_the_model_are_the_published_ones(vectors):
    from tokengraph.losses import IdleCutLoss

    v, model, handle, _ = attached(vectors, cut=True)
    model(v["image"])
    assert len(handle.trace.seen) == 5
    for (logits, runs), inter, intra in zip(handle.trace.seen, v["cut_inter"], v["cut_intra"], strict=True):
        found = IdleCutLoss(weight=1.0).terms(logits, runs)
        assert_close(found[0], inter, rtol=1e-4, atol=1e-6)
        assert_close(found[1], intra, rtol=1e-4, atol=1e-6)
    total = IdleCutLoss(weight=10.0, official=True)(handle.trace.seen)
    assert_close(total, v["cut_total_official"], rtol=1e-4, atol=0)
    whole = IdleCutLoss(weight=10.0)(handle.trace.seen)
    assert whole > total
    whole.backward()
    learns = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert any("qkv" in n for n in learns)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"Expected shares in \(0, 1\]"):
        tg.IdleViT(0.0)
    with pytest.raises(ValueError, match="Expected one ratio for each layer"):
        tg.IdleViT(ratios=[0.5])
    with pytest.raises(ValueError, match=r"Expected blocks in \[0, 5\] as layers"):
        tg.IdleViT(layers=[7]).bind(8, 6)
