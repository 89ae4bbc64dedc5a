"""Counts the operations that an attached strategy adds to a model; on a GPU each is a launch of a kernel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tokengraph.adapters.coarse import SITE
from tokengraph.adapters.pause import paused
from tokengraph.kinds import explains

# Views and metadata: no work on the device. Everything else counts, a copy of a tensor's type that changes nothing too.
VIEWS = frozenset(
    "view reshape flatten slice select transpose permute expand squeeze unsqueeze split unbind alias detach "
    "promote_types".split()
)
OUTSIDE = "outside"


@dataclass(frozen=True)
class Launches:
    """The operations of one run of an attached model, and of the plain model.

    Attributes:
        attached: Operations of the attached model.
        plain: Operations of the same model with its attachments paused.
        steps: Blocks in which the number of tokens falls.
        by_step: For each attached block by name, and ``"outside"`` of them, the operations beyond the plain model's by
            kind; negative where the plain model has more. Blocks without a difference are left out.
        by_kind: The same over the whole model.
    """

    attached: int
    plain: int
    steps: int
    by_step: dict[str, dict[str, int]] = field(repr=False)
    by_kind: dict[str, int] = field(repr=False)

    @property
    def beyond(self) -> int:
        """Operations beyond the plain model's."""
        return self.attached - self.plain

    @property
    def a_step(self) -> float:
        """Operations beyond the plain model's for each step; those that a run needs once, and biases, are shared."""
        return self.beyond / max(self.steps, 1)


@explains
def launches(model: nn.Module, *inputs: Any, **named: Any) -> Launches:
    """Counts the operations of an attached model beyond those of the plain one, by step and by kind.

    An operation is a call that reaches PyTorch's dispatcher under ``torch.inference_mode``, where functions made of
    several operations may count once. Views and metadata are left out, see ``VIEWS``.

    Args:
        model: A model with a strategy attached; it stays as it is.
        *inputs: Inputs of the model; none: two random images of the model's own size.
        **named: Inputs by name.

    Raises:
        ValueError: If nothing is attached, or there are no inputs and the model's image size is unknown.

    Cost: four runs of the model; the first of each pair fills caches of constants.

    Example:
        >>> import tokengraph as tg
        >>> from tokengraph.testing import tiny_vit
        >>> model = tiny_vit()
        >>> with tg.attach(model, "random", {1: 0.5}):
        ...     counted = launches(model)
        >>> counted.steps, counted.beyond == sum(counted.by_kind.values())
        (1, True)
    """
    sites = {name: m.__dict__[SITE] for name, m in model.named_modules() if SITE in m.__dict__}
    if not sites:
        raise ValueError("Expected a model with a strategy attached (got none). Call tokengraph.attach(model, ...).")
    trace = next(iter(sites.values())).trace
    if not inputs and not named:
        inputs = (_own_images(model, trace),)
    blocks = {name: model.get_submodule(name) for name, site in sites.items() if site.index >= 0}

    def call() -> object:
        return model(*inputs, **named)

    attached = _by_block(call, blocks)
    counts = getattr(trace, "counts_worked", [])
    with paused(model):
        plain = _by_block(call, blocks)
    more = {name: _difference(attached[name], plain[name]) for name in attached}
    total = [sum(counted.values(), Counter()) for counted in (attached, plain)]
    return Launches(
        total[0].total(),
        total[1].total(),
        _steps(counts, trace),
        {name: kinds for name, kinds in more.items() if kinds},
        _difference(*total),
    )


def operations(call: Callable[[], object]) -> Counter[str]:
    """Counts the operations of a call by kind, on any device; views and metadata are left out."""
    with torch.inference_mode(), _Count() as seen:
        call()
    return sum(seen.found.values(), Counter())


class _Count(TorchDispatchMode):
    """Counts operations by the block that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, Counter[str]] = {OUTSIDE: Counter()}
        self.inside = [OUTSIDE]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Counts an operation and runs it."""
        kind = func._schema.name.partition("::")[2]
        if kind not in VIEWS:
            self.found[self.inside[-1]][kind] += 1
        return func(*args, **(kwargs or {}))


def _by_block(call: Callable[[], object], blocks: dict[str, nn.Module]) -> dict[str, Counter[str]]:
    """Counts the operations of a call for each block, after a run that fills caches."""
    with torch.inference_mode():
        call()
    with torch.inference_mode(), _Count() as seen:
        seen.found |= {name: Counter() for name in blocks}
        hooks = []
        try:
            for name, block in blocks.items():
                hooks += [
                    block.register_forward_pre_hook(lambda *_, name=name: seen.inside.append(name)),
                    block.register_forward_hook(lambda *_: seen.inside.pop() and None),
                ]
            call()
        finally:
            for hook in hooks:
                hook.remove()
    return seen.found


def _difference(more: Counter[str], less: Counter[str]) -> dict[str, int]:
    kinds = {kind: more[kind] - less[kind] for kind in (more | less)}
    return dict(sorted(((k, n) for k, n in kinds.items() if n), key=lambda pair: (-abs(pair[1]), pair[0])))


def _steps(counts: Any, trace: Any) -> int:
    """Blocks in which the number of tokens falls."""
    if not isinstance(counts, list) or not all(isinstance(n, int) for n in counts):
        return 0
    plans = getattr(getattr(trace, "run", None), "plans", None)
    if plans is not None and plans.request.select.placement == "around":
        return sum(n < counts[0] for n in counts[1:])
    return sum(b < a for a, b in pairwise(counts))


def _own_images(model: nn.Module, trace: Any) -> Tensor:
    """Makes two random images of the size that the model was made for."""
    grid = getattr(getattr(getattr(trace, "run", None), "shape", None), "grid", None)
    patches = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if grid is None or len(grid) != 2 or patches is None:
        raise ValueError("Expected inputs for a model of unknown image size (got none). Call launches(model, images).")
    size = [side * int(step) for side, step in zip(grid, patches.stride, strict=True)]
    like = patches.weight
    images = torch.randn(2, patches.in_channels, *size, generator=torch.Generator().manual_seed(0))
    return images.to(like.device, like.dtype)
