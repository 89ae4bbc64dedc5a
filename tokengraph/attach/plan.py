"""What is planned for a run: one table, made when it begins, of the tokens to be left of each image in each layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tokengraph.adapters.base import InputShape
from tokengraph.attach.request import Request
from tokengraph.maps.lineage import Lineage
from tokengraph.schedule import tokens_per_layer


@dataclass(eq=False)
class PlanTable:
    """A run's plan; entry l is about l finished blocks, entry 0 about the input of the first.

    Args:
        keep: Patch tokens to have left: one number, or one an image where that differs.
        grows: Whether any image's plan has more tokens than one block before, as where every patch comes back.
        again: Where every patch comes back before the strategy chooses again.
        whole: Whether every patch comes back after the last block, before the final norm: behind it, what the strategy
            stored would not fit.
    """

    keep: Sequence[int | list[int]]
    grows: Sequence[bool]
    again: frozenset[int] = frozenset()
    whole: bool = False

    @classmethod
    def of(
        cls, plans: Sequence[Sequence[int]], depth: int, again: frozenset[int] = frozenset(), whole: bool = False
    ) -> PlanTable:
        """The table of ``depth`` blocks, out of plans, one for all images or one each."""
        keep: list[int | list[int]] = []
        for layer in range(depth + 1):
            each = [plan[layer] for plan in plans]
            keep.append(each[0] if len(set(each)) == 1 else each)
        grows = [False, *(any(plan[layer + 1] > plan[layer] for plan in plans) for layer in range(depth))]
        return cls(keep, grows, again, whole)

    def due(self, finished: int, lineage: Lineage, acts: Callable[[int, int, int], bool]) -> tuple[str, ...]:
        """What is due once ``finished`` blocks are done.

        Args:
            finished: Blocks.
            lineage: The tokens before that.
            acts: The strategy's own :meth:`~tokengraph.select.base.Select.acts`, which may look at its mode.

        Returns:
            ``"restore"``: every patch comes back; dropping tokens first would change nothing. ``"act"``: the strategy
            acts on some image, after that. Neither: nothing.
        """
        if self.whole and finished + 1 == len(self.keep):
            return ("restore",) if lineage.coarse else ()
        keep, now = self.keep[finished], lineage.now
        again = finished in self.again and lineage.coarse
        if not again and self.grows[finished] and any(k > n for k, n in now.pairs(keep)):
            return ("restore",)
        before = lineage.start if again else now
        active = any(acts(finished, k, n) for k, n in before.pairs(keep))
        return (*("restore",) * again, *("act",) * active)


@dataclass
class Plans:
    """Makes the tables of a model's runs. That for images of the model's own size is made once.

    Args:
        request: What was asked for.
        plan: Patch tokens after each number of blocks, for the model's own image size; slot 0 before the first.
        patches: Patch tokens an image at the input, for that size.
        grid: ``(H, W)`` of these.
    """

    request: Request
    plan: list[int]
    patches: int
    grid: tuple[int, int]

    def __post_init__(self) -> None:
        self._own = [PlanTable.of([self.plan], self.depth, self.request.again, whole) for whole in (False, True)]

    @property
    def depth(self) -> int:
        """Blocks in the model."""
        return len(self.plan) - 1

    def table(self, patches: int, shape: InputShape, whole: bool) -> PlanTable:
        """The table of a run.

        Args:
            patches: Patch tokens an image, with padding.
            shape: Of the images.
            whole: Whether a head around the model needs every patch of the output.

        Raises:
            ValueError: If the schedule does not fit an image; the message says how many patches it has.
        """
        whole = (whole or self.request.lift) and self.request.select.stores
        if shape.one_grid is not None:
            if patches == self.patches:
                return self._own[whole]
            return PlanTable.of([self._plan(patches, shape)], self.depth, self.request.again, whole)
        each = [height * width for height, width in shape.grids or ()]
        made = {count: self._plan(count, shape) for count in set(each)}
        return PlanTable.of([made[count] for count in each], self.depth, self.request.again, whole)

    def _plan(self, patches: int, shape: InputShape) -> list[int]:
        """Patch tokens after each number of blocks, for one image of ``patches`` at the input."""
        if patches == self.patches:
            return self.plan
        request, select = self.request, self.request.select
        try:
            return tokens_per_layer(request.schedule, self.depth, patches, select.fewest, clusters=select.own_budget)
        except ValueError as error:
            height, width = shape.grid or self.grid
            dropped = shape.grids is None and patches < height * width
            why = f", of {height} x {width}: the model drops patches in train mode" if dropped else ""
            raise ValueError(f"{error} This is for an image of {patches} patches, padding not counted{why}.") from error
