"""The plan of a run: a table of the number of tokens to keep in each layer and image."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from tokengraph.adapters.base import InputShape
from tokengraph.attach.request import Request
from tokengraph.maps.lineage import Lineage
from tokengraph.schedule import tokens_around, tokens_per_layer


@dataclass(eq=False)
class PlanTable:
    """A run's plan. Entry l describes the tokens after l blocks, entry 0 the input of the first block.

    Args:
        keep: Patch tokens to keep: one number, or one an image where images differ.
        grows: True where any image's plan has more tokens than one block before, as when every patch is restored.
        again: True where every patch is restored before the strategy chooses again.
        whole: True if every patch is restored after the last block, before the final norm. The strategy stored
            features from before that norm, so they would not fit after it.
        inner: Patch tokens inside each block, for strategies that act around a module; empty for others.
    """

    keep: Sequence[int | list[int]]
    grows: Sequence[bool]
    again: frozenset[int] = frozenset()
    whole: bool = False
    inner: Sequence[int | list[int]] = ()

    @classmethod
    def of(
        cls, plans: Sequence[Sequence[int]], depth: int, again: frozenset[int] = frozenset(), whole: bool = False
    ) -> PlanTable:
        """Makes the table of ``depth`` blocks from one plan for all images, or one an image."""
        keep = _columns(plans) if plans else [[]] * (depth + 1)
        grows = [False, *(any(plan[layer + 1] > plan[layer] for plan in plans) for layer in range(depth))]
        return cls(keep, grows, again, whole)

    @cached_property
    def idle(self) -> tuple[bool, ...]:
        """True for images of which no token leaves in any layer, so that the model's own outputs count.

        One for each image, or one for all that have the same plan.
        """
        images = max((len(keep) for keep in self.keep if isinstance(keep, list)), default=1)
        each = [keep if isinstance(keep, list) else [keep] * images for keep in self.keep]
        return tuple(not self.inner and len(set(plan)) == 1 for plan in zip(*each, strict=True))

    def inside(self, index: int, lineage: Lineage, acts: Callable[[int, int, int], bool]) -> int | list[int] | None:
        """Returns the tokens inside block ``index``; ``None`` if the strategy does not act there.

        Args:
            index: The block, which as many finished blocks come before.
            lineage: Its tokens.
            acts: As for :meth:`due`.
        """
        keep = self.inner[index]
        return keep if any(acts(index, k, n) for k, n in lineage.now.pairs(keep)) else None

    def due(self, finished: int, lineage: Lineage, acts: Callable[[int, int, int], bool]) -> tuple[str, ...]:
        """Returns the steps to take after ``finished`` blocks, in order.

        Args:
            finished: Number of finished blocks.
            lineage: The tokens before those steps.
            acts: The strategy's own :meth:`~tokengraph.select.base.Select.acts`, which may depend on train mode.

        Returns:
            ``"restore"`` if every patch is restored first (dropping tokens before that would change nothing), then
            ``"act"`` if the strategy acts on any image.
        """
        if self.inner:  # around blocks nothing leaves between them
            return ()
        if self.whole and finished + 1 == len(self.keep):
            return ("restore",) if lineage.coarse else ()
        keep, now = self.keep[finished], lineage.now
        again = finished in self.again and lineage.coarse
        if not again and self.grows[finished] and any(k > n for k, n in now.pairs(keep)):
            return ("restore",)
        before = lineage.start if again else now
        active = any(acts(finished, k, n) for k, n in before.pairs(keep))
        return (*("restore",) * again, *("act",) * active)


def _columns(plans: Sequence[Sequence[int]]) -> list[int | list[int]]:
    """The entries of one plan an image side by side: one number where all images agree."""
    return [each[0] if len(set(each)) == 1 else list(each) for each in zip(*plans, strict=True)]


@dataclass
class Plans:
    """Makes the table of each run; the table for the model's own image size is made once.

    Args:
        request: The arguments of ``attach``.
        plan: Patch tokens after each number of blocks, for the model's own image size, ``depth + 1`` ints.
        patches: Patch tokens an image at the input, for that size.
        grid: ``(H, W)`` of these, or ``(T, H, W)``.
    """

    request: Request
    plan: list[int]
    patches: int
    grid: tuple[int, ...]

    def __post_init__(self) -> None:
        self.inner = self._inside(self.patches) if self.request.select.placement == "around" else []
        self._own = [self._table([self.patches], whole) for whole in (False, True)]

    @property
    def depth(self) -> int:
        """Blocks in the model."""
        return len(self.plan) - 1

    def table(self, patches: int, shape: InputShape, whole: bool) -> PlanTable:
        """Makes the table of a run.

        Args:
            patches: Patch tokens an image, padding included.
            shape: Shape of the images.
            whole: True if a head around the model needs every patch of the output.

        Raises:
            ValueError: If the schedule does not fit an image; the message says how many patches it has.
        """
        whole = (whole or self.request.lift) and self.request.select.stores
        if self.request.select.replans:
            self._renew()
        if shape.one_grid is not None:
            return self._own[whole] if patches == self.patches else self._table([patches], whole, shape)
        return self._table([height * width for height, width in shape.grids or ()], whole, shape)

    def _renew(self) -> None:
        """Plans again for the model's own image size, by the schedule as it is now."""
        request, select = self.request, self.request.select
        self.plan = tokens_per_layer(request.schedule, self.depth, self.patches, select.fewest)
        self._own = [self._table([self.patches], whole) for whole in (False, True)]

    def _table(self, each: Sequence[int], whole: bool, shape: InputShape | None = None) -> PlanTable:
        """Makes the table for images with these numbers of patches."""
        made = {count: self._plan(count, shape or InputShape(self.grid)) for count in set(each)}
        table = PlanTable.of([made[count] for count in each], self.depth, self.request.again, whole)
        if self.request.select.placement == "around":
            inner = {count: self._inside(count) for count in set(each)}
            table.inner = _columns([inner[count] for count in each]) if each else [0] * self.depth
        return table

    def _inside(self, patches: int) -> list[int]:
        """Returns the patch tokens inside each block, for an image with ``patches`` at the input."""
        request, select = self.request, self.request.select
        return tokens_around(request.schedule, self.depth, patches, select.fewest, clusters=select.own_budget)

    def _plan(self, patches: int, shape: InputShape) -> list[int]:
        """Returns the patch tokens after each number of blocks, for an image with ``patches`` at the input."""
        if patches == self.patches:
            return self.plan
        if self.request.select.placement == "around":
            return [patches] * (self.depth + 1)
        request, select = self.request, self.request.select
        try:
            return tokens_per_layer(request.schedule, self.depth, patches, select.fewest, clusters=select.own_budget)
        except ValueError as error:
            grid = shape.grid or self.grid
            dropped = shape.grids is None and patches < math.prod(grid)
            why = f", of {' x '.join(map(str, grid))} (the model drops patches in train mode)" if dropped else ""
            raise ValueError(f"{error} The image has {patches} patches without padding{why}.") from error
