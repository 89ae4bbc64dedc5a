"""Training of the sparsified stage: two streams, against evaluation with the same decisions."""

import pytest
import torch
from spatial_cases import images, positions, stage_of
from torch.testing import assert_close

import tokengraph as tg
from tokengraph.nn.slow_fast import split_by_mask
from tokengraph.spatial import DynamicSpatial

SLOW, FAST = [1e4, -1e4], [-1e4, 1e4]


def _trained(tiny, lively, count, **options):
    model, x = tiny(), images(count)
    handle = lively(tg.attach(model, DynamicSpatial(0.7, **options)))
    model.train()
    handle.select.noise = [_noise(model, count) for _ in range(3)]
    out = model(x)
    return model, handle, x, out, handle.trace.decisions


def _noise(model, count):
    """Decides by itself, at random."""
    coin = torch.rand(count, positions(model), 1) < 0.6
    return torch.where(coin, torch.tensor(SLOW), torch.tensor(FAST))


def _forced(model, x, decisions):
    """Evaluation with given decisions."""
    model.eval()
    stage = stage_of(model)
    stage._route = lambda site, s, tokens: split_by_mask(decisions[s] > 0.5)
    try:
        with torch.no_grad():
            return model(x)
    finally:
        del stage._route


@pytest.mark.parametrize("count", [1, 2, 3])
def test_training_computes_what_evaluation_does_for_the_same_decisions(tiny, lively, count):
    model, _, x, out, decisions = _trained(tiny, lively, count)
    assert all(0 < d.mean() < 1 for d in decisions) and not torch.equal(decisions[0], decisions[1])
    assert_close(_forced(model, x, decisions), out.detach(), rtol=1e-4, atol=1e-4)


def test_training_in_the_published_form_differs_once_a_mask_changes(tiny, lively):
    model, _, x, out, decisions = _trained(tiny, lively, 2, remerge=False)
    assert (_forced(model, x, decisions) - out).abs().max() > 1e-2


def test_training_in_the_published_form_is_evaluation_while_no_mask_changes(tiny, lively):
    model, x = tiny().train(), images()
    handle = lively(tg.attach(model, DynamicSpatial(0.7, remerge=False)))
    handle.select.noise = [_noise(model, 2)] * 3
    out = model(x)
    assert torch.equal(handle.trace.decisions[0], handle.trace.decisions[2])
    assert_close(_forced(model, x, handle.trace.decisions), out.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("remerge", [True, False])
def test_training_with_everything_slow_is_the_dense_network(tiny, lively, remerge):
    model, x = tiny(), images()
    dense = model(x)
    handle = lively(tg.attach(model, DynamicSpatial(0.7, remerge=remerge)))
    handle.select.noise = [torch.tensor(SLOW).expand(2, positions(model), 2)] * 3
    assert_close(model.train()(x), dense)


@pytest.mark.parametrize("remerge", [True, False])
def test_training_reaches_every_parameter(tiny, lively, remerge):
    model, handle, x, _, _ = _trained(tiny, lively, 2, remerge=remerge)
    handle.select.noise = None
    for parameter in handle.select.predictors.parameters():
        parameter.data.mul_(0.3)  # sure decisions have no gradient
    model(x).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


@pytest.mark.parametrize("remerge", [True, False])
def test_gradient_checkpointing_changes_nothing(tiny, lively, remerge):
    model, x, grads = tiny(), images(), []
    lively(tg.attach(model, DynamicSpatial(0.7, remerge=remerge)))
    model.train()
    for checkpointed in (False, True):
        model.set_grad_checkpointing(checkpointed)
        model.zero_grad()
        torch.manual_seed(3)
        model(x).square().mean().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for plain, again in zip(*grads, strict=True):
        assert_close(plain, again)


@pytest.mark.parametrize("training", [True, False])
def test_mixed_precision_stays_finite_and_close(tiny, lively, training):
    model, x = tiny().train(training), images()
    handle = lively(tg.attach(model, DynamicSpatial(0.7, remerge=False)))
    handle.select.noise = [_noise(model, 2) for _ in range(3)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(x)
    assert handle.trace.decisions[0].dtype == handle.trace.scores[0].dtype == torch.float32
    assert out.isfinite().all()
    out.float().square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    if training:  # the same decisions in both
        assert (out.float() - model(x)).abs().max() < 0.1 * out.abs().max()


def test_decisions_follow_the_random_state(tiny):
    model, x = tiny().train(), images()
    handle, drawn = tg.attach(model, DynamicSpatial(0.7)), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        model(x)
        drawn.append(torch.stack(handle.trace.decisions))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
