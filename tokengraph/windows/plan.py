"""The plan of a model with windows, and the site of its changed modules."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tokengraph.adapters.coarse import KEPT, SITE, Coarse, coarse_class
from tokengraph.attach.changes import Hook
from tokengraph.attach.checks import check_equal
from tokengraph.attach.kept import KeptOutput
from tokengraph.attach.site import Mark
from tokengraph.attach.threads import raise_two_threads
from tokengraph.nn.modes import in_eval, precise, untouched
from tokengraph.select.base import Select
from tokengraph.select.cubist_merge import CubistMerge
from tokengraph.select.expedite.expedite import Expedite
from tokengraph.windows.grid import Pair, area
from tokengraph.windows.record import WindowRecord


@dataclass(frozen=True)
class WindowPlan:
    """The settings with which a model's windows are coarsened, and the range of changed blocks.

    Attributes:
        select: The strategy.
        window: ``(a, b)``, tokens of a window.
        keep: Tokens kept per window.
        clusters: ``(h, w)`` of these; ``None`` if they form no grid.
        before: First changed block.
        until: Last changed block + 1.
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
        """True if every token is kept; the model then runs unchanged."""
        return self.keep >= area(self.window)

    @property
    def to_grid(self) -> Expedite | CubistMerge:
        """The strategy, if it makes small grids."""
        assert isinstance(self.select, Expedite | CubistMerge)
        return self.select

    @property
    def small(self) -> Pair:
        """The small grid."""
        assert self.clusters is not None
        return self.clusters


@dataclass
class WindowSite(Mark):
    """The mark of a changed module, with the plan."""

    trace: WindowRecord
    plan: WindowPlan = field(kw_only=True)


def here(module: object) -> tuple[WindowPlan, WindowSite]:
    """Returns the plan and the site of a changed module."""
    site: WindowSite = getattr(module, SITE)
    return site.plan, site


def kept_output(block: nn.Module, path: str) -> Hook:
    """Returns a hook that keeps the output of a part of a block for :func:`run_and_keep`."""
    return Hook(block.get_submodule(path), KeptOutput(block, path))


def run_and_keep(block: Any, run: Callable[[], Tensor], path: str) -> tuple[Tensor, Tensor]:
    """Calls ``run``; returns its result and the output of the block's part at ``path`` during the call.

    Raises:
        RuntimeError: If another thread runs the block.
    """
    if KEPT in block.__dict__:
        raise_two_threads()
    kept: dict[str, Tensor] = {}
    block.__dict__[KEPT] = kept
    try:
        out = run()
    finally:
        block.__dict__.pop(KEPT, None)
    return out, kept[path]


def check_window_halves(
    block: nn.Module, mixin: type[Coarse], halves: Callable[[Any, Tensor], Tensor], x: Tensor
) -> None:
    """Raises unless the halves of a block equal its own forward bit for bit on ``x``, a map as the block takes it."""
    like = next(block.parameters())
    if like.is_meta:
        return
    x = x.to(like.device, like.dtype)
    with in_eval(block), untouched(block), precise(like.device), torch.no_grad():
        probe: Any = copy.copy(block)
        probe.__class__ = coarse_class(mixin, type(block))
        wanted, got = (y[0] if isinstance(y, tuple) else y for y in (block(x), halves(probe, x)))
    check_equal(block, wanted, got, "window attention and an MLP")


def example(height: int, width: int, channels: int) -> Tensor:
    """Returns an example map ``[1, H, W, C]`` for the checks of blocks."""
    return torch.linspace(-2, 2, height * width * channels, dtype=torch.float32).sin().view(1, height, width, channels)
