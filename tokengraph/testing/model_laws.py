"""The laws that ``attach`` obeys on every model, each a function that raises ``AssertionError`` if it is broken.

Check a model family of your own with :func:`check_model`.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tokengraph.adapters.base import Adapter
from tokengraph.attach.attach import attach, detach
from tokengraph.kinds import explains
from tokengraph.testing.anatomy_laws import counts_the_tokens_of_the_model
from tokengraph.testing.hold import hold
from tokengraph.testing.meaning_laws import (
    Groups,
    changes_nothing_by_merging_equal_tokens,
    reads_the_attention_of_its_block,
)
from tokengraph.testing.model_case import ModelCase, anatomy, same
from tokengraph.testing.training_laws import (
    has_the_plain_gradients_under_checkpointing,
    trains,
    trains_after_inference_mode,
)

HALF = 0.1  # tolerance relative to the norm: half precision has three digits, and a few blocks lose some


def is_bit_identical_while_nothing_is_removed(case: ModelCase) -> None:
    """With an empty schedule outputs are bit-identical to the plain model's, in evaluation and in training."""
    for train in (False, True):
        model = case.make().train(train)
        with torch.no_grad():
            plain = case.run(model)
            for schedule in (0, {1: 1.0}):
                with case.attach(model, schedule) as handle:
                    assert same(case.run(model), plain), f"schedule {schedule} changed the output, train={train}"
                    assert len(set(handle.trace.counts)) == 1


def gives_the_model_back(case: ModelCase) -> None:
    """``remove`` restores classes, hooks and outputs; names of parameters never change."""
    model = case.make()
    with torch.no_grad():
        plain, keys, before = case.run(model), list(model.state_dict()), anatomy(model)
        handle = case.attach(model)
        assert list(model.state_dict()) == keys
        assert not same(case.run(model), plain), "the strategy did nothing"
        handle.remove()
        handle.remove()
        assert anatomy(model) == before
        assert not any("tokengraph" in name for m in model.modules() for name in m.__dict__)
        assert same(case.run(model), plain)


def removes_what_was_asked(case: ModelCase) -> None:
    """Counts follow the schedule, sizes account for every patch, and features lift to every patch."""
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
    """The output for an image does not depend on the rest of the batch, and a second run repeats the first."""
    model = case.make()
    with case.attach(model), torch.no_grad():
        together = case.run(model)
        first = case.run(model, slice(0, 1)) if case.alone else together
        assert same(case.run(model), together)
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
            assert same(case.run(twin), attached)
            detach(twin)
            assert same(case.run(twin), plain)


def _saves(model: nn.Module) -> bool:
    """True if the model can be pickled; some backbones of transformers hold functions that cannot."""
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
    """The state dict of the plain model loads into the attached one, and vice versa."""
    model, other = case.make(), case.make()
    with torch.no_grad(), case.attach(model):
        attached = case.run(model)
        for parameter in model.parameters():
            parameter.zero_()
        model.load_state_dict(other.state_dict())
        assert same(case.run(model), attached)
        other.load_state_dict(model.state_dict())


def runs_in_half_precision(case: ModelCase) -> None:
    """Under autocast and in bfloat16, outputs are near those of float32; sizes stay in float32.

    In half precision a strategy may choose other tokens, so this law uses ``Groups``, whose choice is fixed.
    """
    model = case.make()
    half = ModelCase(case.make, *(_halved(v) for v in (case.inputs, case.named)))
    with case.attach(model) as handle, torch.no_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert all(t.isfinite().all() for t in case.run(model))
        assert all(t.isfinite().all() for t in half.run(model.bfloat16()))
        assert handle.trace.size().dtype == torch.float32
    if not case.alone:  # in bfloat16 a random model draws other numbers
        return
    model = case.make()
    with attach(model, Groups(), {1: 0.7}, adapter=case.adapter), torch.no_grad():
        full = case.run(model)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = case.run(model)
        for name, outputs in (("autocast", cast), ("bfloat16", half.run(model.bfloat16()))):
            for ours, theirs in zip(outputs, full, strict=True):
                error = (ours.float() - theirs.float()).norm() / theirs.float().norm()
                assert error < HALF, f"{name}: {float(error):.2f} of the output's norm away from float32"


def _halved(values: Any) -> Any:
    if isinstance(values, dict):
        return {name: _halved(value) for name, value in values.items()}
    if isinstance(values, tuple):
        return tuple(map(_halved, values))
    return values.bfloat16() if isinstance(values, Tensor) and values.is_floating_point() else values


def compiles_in_one_graph(case: ModelCase) -> None:
    """``torch.compile(fullgraph=True)`` gives the results of eager mode; graph breaks are allowed if needed."""
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
    counts_the_tokens_of_the_model,
    removes_what_was_asked,
    changes_nothing_by_merging_equal_tokens,
    reads_the_attention_of_its_block,
    treats_images_alone,
    copies_are_independent,
    loads_its_state,
    has_the_plain_gradients_under_checkpointing,
    trains,
    runs_in_half_precision,
    trains_after_inference_mode,
    compiles_in_one_graph,
]


@explains
def check_model(
    make: Callable[[], nn.Module],
    *inputs: Any,
    adapter: Adapter | None = None,
    without: Sequence[str] = (),
    **named: Any,
) -> None:
    """Checks a model that ``attach`` should support against every law; use a small configuration.

    Args:
        make: Makes the model, with the same weights each time, in evaluation mode.
        *inputs: The inputs of the model; tensors have one row per image, for at least two images.
        adapter: The adapter, for models that ``attach`` cannot recognise.
        without: Names of laws to leave out.
        **named: Inputs by name.

    Raises:
        AssertionError: If a law is broken or raises any other error; the message names the first such law.
        ValueError: If ``without`` names a law that does not exist.

    Cost: many runs of the model, and one compilation.

    Example:
        >>> from tokengraph.testing import tiny_vit
        >>> check_model(tiny_vit, torch.randn(2, 3, 32, 32))
    """
    hold(MODEL_LAWS, ModelCase(make, inputs, named, adapter), "The model", without)
