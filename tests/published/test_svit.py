"""SViT's gates, and AdaViT's, against vectors of the published codes (see reference/pruning/README.md)."""

import pytest
import torch
from pruning import stored_model
from torch.testing import assert_close

import tokengraph as tg
from tokengraph.nn.gates import MlpGate, gumbel_gate


def gate_weights(v, index=None):
    stem = "sd/selective_modules."
    found = {k[len(stem) :]: t for k, t in v.items() if k.startswith(stem)}
    return found if index is None else {k[2:]: t for k, t in found.items() if k.startswith(f"{index}.")}


def test_the_gate_gives_the_published_log_probabilities(vectors):
    v = vectors("pruning", "svit_select")
    gate = MlpGate(16)
    gate.load_state_dict(gate_weights(v, 0))
    logp = gate(v["x"][:, 1:])
    assert_close(logp, v["log_probability"], rtol=1e-5, atol=1e-6)
    a = tg.gate((logp[..., 0] - logp[..., 1]).detach())
    assert torch.equal((a.cluster < a.num_clusters).view(3, 20), v["selected"][:, 1:].bool())


def attached(vectors):
    v = vectors("pruning", "svit_model")
    model, how = stored_model(v)
    handle = tg.attach(model, tg.SViT(0.5, layers=how["layers"]))
    handle.select.gates.load_state_dict(gate_weights(v))
    model.eval()
    return v, model, handle, how


def test_the_model_of_the_published_code_is_reproduced_as_one_ragged_batch(vectors):
    v, model, handle, how = attached(vectors)
    with torch.no_grad():
        logits = model(v["image"])
    assert_close(logits, v["logits"], rtol=0, atol=2e-5)
    for j, layer in enumerate(how["layers"]):
        a = handle.trace.inside(layer)
        assert torch.equal((a.cluster < a.num_clusters).view(2, 196), v["selected"][:, j].bool())
    assert handle.trace.counts == [196] * 6
    with torch.no_grad():
        alone = torch.cat([model(one[None]) for one in v["image"]])
    assert_close(alone, logits, rtol=0, atol=2e-5)


def test_training_runs_all_tokens_and_equals_removal(vectors):
    v, model, handle, how = attached(vectors)
    with torch.no_grad():
        wanted = model(v["image"])
    handle.select.gates.train()
    handle.select.noise = [torch.zeros(2, 196)] * 4
    logits = model(v["image"])
    assert_close(logits, wanted, rtol=0, atol=2e-5)
    assert len(handle.trace.decisions) == 4 and handle.trace.shares == []
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in handle.select.gates.parameters())


def test_the_gradient_of_a_decision_is_that_of_the_sum(vectors):
    v, model, handle, how = attached(vectors)
    handle.select.gates.train()
    handle.select.noise = [torch.zeros(2, 196)] * 4
    seen = []
    model.blocks[4].register_forward_hook(lambda m, args, out: seen.append((args[0], out)))
    model(v["image"])
    (x, out), d = seen[0], handle.trace.decisions[-1]
    w = torch.randn_like(out)
    grad = torch.autograd.grad((out * w).sum(), d, retain_graph=True)[0]
    change = (out - x)[:, 1:]  # where d is 1 it is that of the block
    on = d.detach() > 0.5
    assert_close(grad[on], (w[:, 1:] * change).sum(dim=2)[on].detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [50.0, -50.0])
def test_all_or_no_tokens_run_the_plain_block_or_the_class_token_alone(vectors, bias):
    v = vectors("pruning", "svit_model")
    model, how = stored_model(v)
    with torch.no_grad():
        plain = model(v["image"])
    handle = tg.attach(model, tg.SViT(0.5, layers=[2]))
    for gate in handle.select.gates:
        gate.mlp.fc2.weight.data.zero_()
        gate.mlp.fc2.bias.data.copy_(torch.tensor([bias, 0.0]))
    model.eval()
    with torch.no_grad():
        out = model(v["image"])
    assert out.isfinite().all()
    assert torch.allclose(out, plain, atol=2e-5) == (bias > 0)
    assert handle.trace.counts_inside[2] == (196 if bias > 0 else 0)


def test_share_losses_are_the_published_ones(vectors):
    from tokengraph.losses import ShareLoss

    v = vectors("pruning", "svit_select")
    decision = v["selected"][:, 1:].float()
    for per, name in (("batch", "ratio_loss_batch"), ("image", "ratio_loss_sample")):
        assert_close(ShareLoss([float(v["ratio"])], per=per)([decision]), v[name], rtol=1e-5, atol=1e-8)


def test_adavit_gates_select_the_published_tokens(vectors):
    v = vectors("pruning", "adavit_step")
    select = tg.AdaViT(threshold=float(v["threshold"]), layers=[0]).bind(12, 1)[0]
    select.gates[0].linear.weight.data.copy_(v["weight"])
    select.gates[0].linear.bias.data.copy_(v["bias"])
    logits = select.gates[0](v["x"][:, 1:])
    assert torch.equal(logits.sigmoid() > v["threshold"], v["selected"][:, 1:].bool())
    a = tg.gate(logits.detach(), float(v["threshold"]))
    kept = torch.cat([torch.ones(2, 1, dtype=torch.bool), (a.cluster < a.num_clusters).view(2, 18)], dim=1)
    scores = v["logits"].masked_fill(~kept[:, None, None], -torch.inf)
    published = v["attn"] * kept[:, None, :, None]
    ours = scores.softmax(dim=3) * kept[:, None, :, None]
    assert_close(ours, published, rtol=1e-4, atol=2e-6)


def test_gumbel_gates_are_whole_and_have_gradients():
    logits = torch.tensor([2.0, -2.0, 0.0], requires_grad=True)
    d = gumbel_gate(logits, noise=torch.zeros(3))
    assert d.tolist() == [1.0, 0.0, 0.0]
    d.sum().backward()
    assert (logits.grad > 0).all()
    with pytest.raises(ValueError, match="Expected tau > 0"):
        gumbel_gate(logits, tau=0.0)
