"""The laws that ``attach`` keeps over every model, each a function that raises ``AssertionError`` where it is broken.

Run them over a model family of your own with :func:`check_model`.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from tokengraph.adapters.base import Adapter
from tokengraph.attach.attach import detach
from tokengraph.testing.model_case import ModelCase


def _equal(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return len(ours) == len(theirs) > 0 and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def _gradients(case: ModelCase, model: nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    sum(t.float().square().sum() for t in case.run(model)).backward()  # type: ignore[union-attr]
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def is_bit_identical_while_nothing_is_removed(case: ModelCase) -> None:
    """With an empty schedule outputs do not change by a bit, in evaluation and in training."""
    for train in (False, True):
        model = case.make().train(train)
        with torch.no_grad():
            plain = case.run(model)
            for schedule in (0, {1: 1.0}):
                with case.attach(model, schedule) as handle:
                    assert _equal(case.run(model), plain), f"schedule {schedule} changed the output, train={train}"
                    assert len(set(handle.trace.counts)) == 1


def _anatomy(model: nn.Module) -> list[tuple[type, list[int]]]:
    """Class of each module, and how many hooks it has and flags of hooks."""
    kinds = [f"_forward{pre}_hooks{flag}" for pre in ("", "_pre") for flag in ("", "_with_kwargs")]
    kinds.append("_forward_hooks_always_called")
    return [(type(m), [len(getattr(m, kind)) for kind in kinds]) for m in model.modules()]


def gives_the_model_back(case: ModelCase) -> None:
    """``remove`` restores classes, hooks and outputs; parameters have the same names all the time."""
    model = case.make()
    with torch.no_grad():
        plain, keys, before = case.run(model), list(model.state_dict()), _anatomy(model)
        handle = case.attach(model)
        assert list(model.state_dict()) == keys
        assert not _equal(case.run(model), plain), "the strategy did nothing"
        handle.remove()
        handle.remove()
        assert _anatomy(model) == before
        assert not any("tokengraph" in name for m in model.modules() for name in m.__dict__)
        assert _equal(case.run(model), plain)


def removes_what_was_asked(case: ModelCase) -> None:
    """Counts fall by the schedule, every patch is accounted for, and features come back to every patch."""
    model = case.make()
    depth = len(case.blocks(model))
    with case.attach(model, {1: 0.5}) as handle, torch.no_grad():
        out = case.run(model)
        counts, trace = handle.trace.counts, handle.trace
        assert all(t.isfinite().all() for t in out)
        assert counts[1:] == [round(counts[0] * 0.5)] * depth, counts
        assert trace.output is not None
        lifted = trace.lift(trace.output)
        assert lifted.shape == (trace.output.size(0), counts[0], trace.output.size(2))
        assert trace.size().sum(dim=1).tolist() == trace.size(0).sum(dim=1).tolist()


def treats_images_alone(case: ModelCase) -> None:
    """An image's output does not depend on the others in its batch, and a second run repeats the first."""
    model = case.make()
    with case.attach(model), torch.no_grad():
        together = case.run(model)
        first = case.run(model, slice(0, 1)) if case.alone else together
        assert _equal(case.run(model), together)
    for ours, theirs in zip(first, together, strict=True):
        assert_close(ours, theirs[: ours.size(0)], rtol=1e-4, atol=1e-4)


def copies_are_independent(case: ModelCase) -> None:
    """Deep copies and saved models stay attached, can be detached, and share nothing with the original."""
    model = case.make()
    with torch.no_grad():
        handle = case.attach(model)
        twins = [copy.deepcopy(model), *([_saved(model)] if _saves(case.make()) else [])]
        plain, attached = case.run(case.make()), case.run(model)
        handle.remove()
        for parameter in model.parameters():
            parameter.zero_()
        for twin in twins:
            assert _equal(case.run(twin), attached)
            detach(twin)
            assert _equal(case.run(twin), plain)


def _saves(model: nn.Module) -> bool:
    """Whether the model can be saved as it is; some backbones of transformers hold functions that cannot."""
    try:
        _saved(model)
    except (AttributeError, pickle.PicklingError):
        return False
    return True


def _saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def loads_its_state(case: ModelCase) -> None:
    """A state of the plain model loads into the attached one, and the other way round."""
    model, other = case.make(), case.make()
    with torch.no_grad(), case.attach(model):
        attached = case.run(model)
        for parameter in model.parameters():
            parameter.zero_()
        model.load_state_dict(other.state_dict())
        assert _equal(case.run(model), attached)
        other.load_state_dict(model.state_dict())


def has_the_plain_gradients_under_checkpointing(case: ModelCase) -> None:
    """Checkpointing, the model's own switch or torch's function around blocks, leaves gradients as they are."""
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
    """In training mode, every parameter that has a gradient without a strategy has a finite one with it."""
    model = case.make().train()
    wanted = set(_gradients(case, model))
    with case.attach(model):
        got = _gradients(case, model)
    assert set(got) == wanted, wanted ^ set(got)
    assert all(gradient.isfinite().all() for gradient in got.values())


def runs_in_half_precision(case: ModelCase) -> None:
    """Under autocast, and in bfloat16 itself, outputs are finite; sizes stay in float32."""
    model = case.make()
    with case.attach(model) as handle, torch.no_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert all(t.isfinite().all() for t in case.run(model))
        half = ModelCase(case.make, *(_halved(v) for v in (case.inputs, case.named)))
        assert all(t.isfinite().all() for t in half.run(model.bfloat16()))
        assert handle.trace.size().dtype == torch.float32


def _halved(values: Any) -> Any:
    if isinstance(values, dict):
        return {name: _halved(value) for name, value in values.items()}
    if isinstance(values, tuple):
        return tuple(map(_halved, values))
    return values.bfloat16() if isinstance(values, Tensor) and values.is_floating_point() else values


def trains_after_inference_mode(case: ModelCase) -> None:
    """A run under ``inference_mode`` leaves nothing behind that breaks a later backward, where the model itself can."""
    model = case.make()
    with torch.inference_mode():
        case.run(model)
    try:
        _gradients(case, model)
    except RuntimeError:  # the model keeps inference tensors by itself
        return
    with case.attach(model):
        with torch.inference_mode():
            served = case.run(model)
        assert all(t.is_inference() for t in served)
        assert all(g.isfinite().all() for g in _gradients(case, model).values())


def compiles_in_one_graph(case: ModelCase) -> None:
    """``torch.compile(fullgraph=True)`` gives what eager mode gives; with graph breaks where one graph cannot be."""
    model = case.make()
    torch.compiler.reset()
    with case.attach(model), torch.no_grad():
        eager = case.run(model)
        compiled = torch.compile(model, fullgraph=case.one_graph, backend="eager")
        for ours, theirs in zip(case.run(compiled), eager, strict=True):  # type: ignore[arg-type]
            assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


MODEL_LAWS: list[Callable[[ModelCase], None]] = [
    is_bit_identical_while_nothing_is_removed,
    gives_the_model_back,
    removes_what_was_asked,
    treats_images_alone,
    copies_are_independent,
    loads_its_state,
    has_the_plain_gradients_under_checkpointing,
    trains,
    runs_in_half_precision,
    trains_after_inference_mode,
    compiles_in_one_graph,
]


def check_model(make: Callable[[], nn.Module], *inputs: Any, adapter: Adapter | None = None, **named: Any) -> None:
    """Holds a model that ``attach`` should serve to every law; run it on a small configuration.

    Args:
        make: Makes the model, with the same weights each time, in evaluation mode.
        *inputs: What the model is called with; tensors have one row an image, two images at least.
        adapter: For models that ``attach`` cannot recognise by itself.
        **named: The same by name.

    Raises:
        AssertionError: Naming the first law that is broken.

    Example:
        >>> from tokengraph.testing import tiny_vit
        >>> check_model(tiny_vit, torch.randn(2, 3, 32, 32))
    """
    case = ModelCase(make, inputs, named, adapter)
    for law in MODEL_LAWS:
        try:
            law(case)
        except AssertionError as error:
            raise AssertionError(f"The model breaks the law {law.__name__!r}: {error}") from error
