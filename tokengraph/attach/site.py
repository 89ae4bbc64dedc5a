"""What an attached module carries: the record of the run, its own place, and what was asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from tokengraph.adapters.base import Adapter
from tokengraph.attach.trace import Trace
from tokengraph.attention.size_bias import SizeRule
from tokengraph.schedule import Schedule, tokens_per_layer
from tokengraph.select.base import Select


@dataclass(frozen=True)
class Recipe:
    """What was asked for, the same for every block of a model."""

    adapter: Adapter
    select: Select
    schedule: Schedule
    rule: SizeRule
    lift: bool
    run: Callable[..., Tensor]  # the block's body; see tokengraph.attach.block.run_block
    again: frozenset[int] = frozenset()  # where every patch comes back before the strategy chooses again


@dataclass
class Mark:
    """What every attached module carries, under the attribute ``SITE``: whose it is, and how it was before.

    Args:
        trace: The record of the run. It tells one attachment from another.
        index: The block's place in its model or stage; -1: the module is no block.
        original: The module's class before; ``None``: it still has it.
        parts: Names of the modules and parameters that were put into it.
    """

    trace: Any
    index: int = -1
    original: type | None = None
    parts: tuple[str, ...] = ()


@dataclass
class Site(Mark):
    """What an attached module of a plain model knows beside that: what was asked for."""

    trace: Trace
    recipe: Recipe = field(kw_only=True)

    @property
    def lift(self) -> bool:
        """Whether the model gives every input patch back."""
        return self.recipe.lift

    def run(self, block: nn.Module, x: Tensor, mask: Tensor | None, side: dict[str, Any]) -> Tensor:
        """Runs the block that carries this site; see :func:`tokengraph.attach.block.run_block`."""
        return self.recipe.run(self, block, x, mask, side)

    @property
    def stores(self) -> bool:
        """Whether tokens that leave come back with something of their own."""
        return self.recipe.select.stores

    def plan(self, patches: int) -> list[int]:
        """Patch tokens after each number of blocks, for ``patches`` at the input."""
        if patches == self.trace.patches:
            return self.trace.plan
        recipe, select = self.recipe, self.recipe.select
        try:
            return tokens_per_layer(
                recipe.schedule, self.trace.depth, patches, select.fewest, clusters=select.own_budget
            )
        except ValueError as error:
            height, width = self.trace.grid
            dropped = self.trace.grids is None and patches < height * width
            why = f", of {height} x {width}: the model drops patches in train mode" if dropped else ""
            raise ValueError(f"{error} This is for an image of {patches} patches, padding not counted{why}.") from error
