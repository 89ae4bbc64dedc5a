"""What an attached module carries: what was asked for, the record of the run, and its own place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokengraph.adapters.base import Adapter
from tokengraph.attach.trace import Trace
from tokengraph.attention.size_bias import SizeRule
from tokengraph.schedule import Schedule, tokens_per_layer
from tokengraph.select.base import Select

SITE = "_tokengraph"  # attribute that an attached module carries
STASH = "_tokengraph_seen"  # what hooks leave on a block that is going to read it


@dataclass(frozen=True)
class Recipe:
    """What was asked for, the same for every block of a model."""

    adapter: Adapter
    select: Select
    schedule: Schedule
    rule: SizeRule
    lift: bool


@dataclass
class Site:
    """What an attached module knows: what was asked for, the record of the run, and its own place."""

    recipe: Recipe
    trace: Trace
    index: int = -1
    original: type | None = None

    @property
    def lift(self) -> bool:
        """Whether the model gives every input patch back."""
        return self.recipe.lift

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


def ours(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a hook as tokengraph's, so that ``detach`` knows it, also in a copy of the model."""
    hook.of_tokengraph = True  # type: ignore[attr-defined]
    return hook
