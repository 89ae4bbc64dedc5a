"""What an attached module carries: the plan, the record of the run, and how to become a stock module again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tokengraph.adapters.coarse import SITE, STASH, Coarse, coarse_class
from tokengraph.attach.block import KeepOutput
from tokengraph.attach.checks import check_equal
from tokengraph.nn.modes import in_eval, precise, untouched
from tokengraph.select.base import Select
from tokengraph.select.expedite.expedite import Expedite
from tokengraph.spatial.block import SpatialSite
from tokengraph.windows.grid import Pair, area
from tokengraph.windows.record import WindowRecord


@dataclass(frozen=True)
class WindowPlan:
    """What happens where in one model.

    Attributes:
        select: The strategy.
        window: ``(a, b)``, tokens of a window.
        keep: Tokens left of each.
        clusters: ``(h, w)`` of them; ``None`` where they form no grid.
        before: The first block that is changed.
        until: The first block that is not any more.
        padding: ``"tokens"`` or ``"ignore"``.
    """

    select: Select
    window: Pair
    keep: int
    clusters: Pair | None
    before: int
    until: int
    padding: str

    @property
    def nothing(self) -> bool:
        """Whether every token stays: the model then runs as it is."""
        return self.keep >= area(self.window)

    @property
    def expedite(self) -> Expedite:
        """The strategy, where it makes small grids."""
        assert isinstance(self.select, Expedite)
        return self.select

    @property
    def small(self) -> Pair:
        """The small grid."""
        assert self.clusters is not None
        return self.clusters


@dataclass
class WindowSite(SpatialSite):
    """What a changed module carries beside its class before."""

    plan: WindowPlan | None = None
    record: WindowRecord = field(default_factory=WindowRecord)
    index: int = -1
    watched: str = ""  # the path of a part whose output is kept

    def undo(self, module: nn.Module) -> None:
        """Gives the module its class back, and takes hooks out."""
        super().undo(module)
        module.__dict__.pop(STASH, None)
        _unhook(module)
        if self.watched:
            _unhook(module.get_submodule(self.watched))


def here(module: object) -> tuple[WindowPlan, WindowSite]:
    """The plan and the site of a changed module."""
    site: WindowSite = getattr(module, SITE)
    assert site.plan is not None
    return site.plan, site


def swap(
    module: nn.Module, mixin: type[Coarse] | None, plan: WindowPlan, record: WindowRecord, index: int = -1
) -> None:
    """Makes a module one of its own class with ``mixin``; without one it only gets a site."""
    original = None if mixin is None else type(module)
    module.__dict__[SITE] = WindowSite(original, (), plan, record, index)
    if mixin is not None:
        module.__class__ = coarse_class(mixin, type(module))


def watch(block: nn.Module, path: str) -> None:
    """Keeps the output of a part of an attached block, where :func:`seen` reads it."""
    block.get_submodule(path).register_forward_hook(KeepOutput(block, path))
    block.__dict__[SITE].watched = path


def seen(block: Any, run: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """What ``run`` returns, and what the watched part of the block gave meanwhile."""
    kept: dict[str, Tensor] = {}
    block.__dict__[STASH] = kept
    out = run()
    block.__dict__.pop(STASH)
    return out, kept[getattr(block, SITE).watched]


def check_halves(block: nn.Module, mixin: type[Coarse], halves: Callable[[Any, Tensor], Tensor], x: Tensor) -> None:
    """Raises unless the halves of a block give, bit for bit, what its own forward gives on ``x [1, H, W, C]``."""
    like = next(block.parameters())
    if like.is_meta:
        return
    x = x.to(like.device, like.dtype)
    with in_eval(block), untouched(block), precise(like.device), torch.no_grad():
        probe: Any = copy.copy(block)
        probe.__class__ = coarse_class(mixin, type(block))
        wanted, got = block(x), halves(probe, x)
    check_equal(block, wanted, got, "window attention and an MLP")


def example(height: int, width: int, channels: int) -> Tensor:
    """A map ``[1, H, W, C]`` to check blocks on."""
    return torch.linspace(-2, 2, height * width * channels, dtype=torch.float32).sin().view(1, height, width, channels)


def _unhook(module: nn.Module) -> None:
    for hooks in (module._forward_hooks, module._forward_pre_hooks):
        for key in [k for k, hook in hooks.items() if getattr(hook, "of_tokengraph", False)]:
            del hooks[key]
