"""A composition in depth: one strategy in the first blocks, another one from some block on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from tokengraph.maps.hard import Assignment
from tokengraph.maps.soft import SoftAssignment
from tokengraph.select.base import READS, Select, resolve
from tokengraph.select.tokens import Tokens

if TYPE_CHECKING:
    from tokengraph.cost import Cost
    from tokengraph.schedule import Schedule


class Staged(Select):
    """Strategies that take turns: each acts from its layer on, with its own place in the block and its own reduction.

    A strategy that finds clusters in one step loses least in one large cut, and ToMe loses least in many small ones.
    Together they lose less than each alone.

    Args:
        stages: ``{l: strategy}``: acts in block l (counted from 1) and after it, until the next entry. A strategy is a
            name, a class or an instance. One that needs the full grid must come first and act once.

    Raises:
        ValueError: If there are no stages, a layer is below 1, or a strategy learns, stores dropped tokens, has its own
            schedule or needs data from the start of a run.

    Example:
        >>> from tokengraph.select.staged import Staged
        >>> Staged({1: "ailurus", 5: "tome"}).for_block(4)
        ToMe(order='published')
    """

    reads: ClassVar[str] = "keys"

    def __init__(self, stages: Mapping[int, str | type[Select] | Select]) -> None:
        if not stages:
            raise ValueError("Expected at least one stage (got none). For example {1: 'ailurus', 5: 'tome'}.")
        self.stages = {_layer(layer): resolve(select) for layer, select in sorted(stages.items())}
        for select in self.stages.values():
            own = select.own_budget is not None or isinstance(select, Staged)
            if select.learns or select.stores or own or type(select).begin is not Select.begin:
                raise ValueError(
                    f"Expected stages that choose by a schedule alone (got {select!r}, which learns, stores tokens, "
                    "has its own schedule or is itself staged). Use it alone."
                )
        parts = list(self.stages.values())
        self.reads = max((part.reads for part in parts), key=READS.index)  # type: ignore[misc]
        self.alone = any(part.alone or part.needs_grid for part in parts)  # type: ignore[misc]
        self.merges = any(part.merges for part in parts)  # type: ignore[misc]

    def __repr__(self) -> str:
        return f"Staged({self.stages!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Staged) and list(self.stages.items()) == list(other.stages.items())

    def __hash__(self) -> int:
        return hash(tuple(self.stages))

    def for_block(self, index: int) -> Select:
        """Returns the strategy that acts in block ``index`` (from 0)."""
        first = next(iter(self.stages.values()))
        return next((s for layer, s in reversed(list(self.stages.items())) if layer <= index + 1), first)

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> Assignment | SoftAssignment:
        """Maps the tokens to clusters by the strategy of this block."""
        return self.for_block(tokens.layer)(tokens, budget)

    def bind(self, channels: int, depth: int, schedule: Schedule | None = None) -> tuple[Select, Schedule]:
        """Returns the stages bound to a model of ``depth`` blocks, and the schedule."""
        _, schedule = super().bind(channels, depth, schedule)
        return Staged({layer: s.bind(channels, depth, schedule)[0] for layer, s in self.stages.items()}), schedule

    def reduction_at(self, layer: int) -> str:
        """Returns the reduction of the strategy that acts in block ``layer``."""
        return self.for_block(layer).reduction_at(layer)

    @property
    def weighs(self) -> bool:
        """True if any stage weighs tokens by size."""
        return any(part.weighs for part in self.stages.values())

    @property
    def restores(self) -> bool:
        """True if every stage can restore its tokens."""
        return all(part.restores for part in self.stages.values())

    def cost(self, num_tokens: int, keep: int, channels: int, head_width: int = 64) -> Cost | None:
        """Counts the choice of the first stage; :func:`tokengraph.cost.vit_cost` asks each block's own strategy."""
        return self.for_block(0).cost(num_tokens, keep, channels, head_width)


def _layer(layer: object) -> int:
    if isinstance(layer, bool) or not isinstance(layer, int) or layer < 1:
        raise ValueError(f"Expected layers of stages as numbers of at least 1 (got {layer!r}).")
    return layer
