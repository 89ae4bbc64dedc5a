"""The laws of training: gradients, checkpointing, and training after inference."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from tokengraph.attach.attach import attach
from tokengraph.testing.meaning_laws import Groups
from tokengraph.testing.model_case import ModelCase

STEP = 1e-4  # of the loss: large beside rounding in float32, small beside the curvature
SLACK = 0.1  # of that share: rounding and curvature


def has_the_plain_gradients_under_checkpointing(case: ModelCase) -> None:
    """Gradient checkpointing, by the model's own switch or by torch around blocks, does not change gradients."""
    found = []
    for checkpointed in (False, True):
        model = case.make().train()
        with case.attach(model):
            if checkpointed:
                _checkpoint(case, model)
            found.append(_gradients(case, model))
    assert found[0].keys() == found[1].keys() and len(found[0]) > 0
    for name, gradient in found[0].items():
        assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


def _checkpoint(case: ModelCase, model: nn.Module) -> None:
    if hasattr(model, "set_grad_checkpointing"):
        model.set_grad_checkpointing()  # type: ignore[operator]
    elif getattr(model, "supports_gradient_checkpointing", False):
        model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    else:
        for block in case.blocks(model):
            plain = block.forward
            block.forward = lambda *args, plain=plain, **kw: checkpoint(plain, *args, use_reentrant=False, **kw)


def trains(case: ModelCase) -> None:
    """Each parameter that trains in the plain model gets a finite gradient, and a small step lowers a loss as they say.

    The loss is compared in evaluation mode, which is not random.
    """
    model = case.make().train()
    wanted = set(_gradients(case, model))
    with case.attach(model):
        got = _gradients(case, model)
        assert set(got) == wanted, wanted ^ set(got)
        assert all(gradient.isfinite().all() for gradient in got.values())
    model.eval()
    with attach(model, Groups(), {1: 0.7}, adapter=case.adapter):  # others may choose other tokens after a step
        lowered = _lowered(case, model, STEP)
        said = f"a step against the gradient lowers the loss by {lowered:.1e} of it, not by {STEP:.1e}"
        assert abs(lowered / STEP - 1) < SLACK, said


def _lowered(case: ModelCase, model: nn.Module, share: float) -> float:
    """Steps against the gradient, equally far in each parameter; returns the share of the loss by which it falls."""
    gradients = {name: g.double() for name, g in _gradients(case, model).items() if g.any()}
    before = _loss(case, model).detach().double()
    step = share * before / sum(g.norm() for g in gradients.values())  # to first order the loss falls by that share
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in gradients:
                parameter -= (step * gradients[name] / gradients[name].norm()).to(parameter.dtype)
        return float((before - _loss(case, model).double()) / before)


def trains_after_inference_mode(case: ModelCase) -> None:
    """A run under ``inference_mode`` does not break a later backward, unless it does so in the plain model."""
    model = case.make()
    with torch.no_grad():
        case.run(model)  # a library that caches tensors by shape for all of its models must not keep inference tensors
    with torch.inference_mode():
        case.run(model)
    try:
        _gradients(case, model)
    except RuntimeError:  # the plain model itself keeps inference tensors
        return
    with case.attach(model):
        with torch.inference_mode():
            served = case.run(model)
        assert all(t.is_inference() for t in served)
        assert all(g.isfinite().all() for g in _gradients(case, model).values())


def _gradients(case: ModelCase, model: nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    _loss(case, model).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def _loss(case: ModelCase, model: nn.Module) -> Tensor:
    return sum(t.float().square().sum() for t in case.run(model))  # type: ignore[return-value]
