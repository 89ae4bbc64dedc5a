"""Schedules of strategies that act ahead of blocks: nothing leaves behind the last block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokengraph.kinds import explains
from tokengraph.schedule.counts import RECONSTRUCT, Schedule, removals
from tokengraph.schedule.rules import Relative, Removal, Rule


@explains
def sparing_last(schedule: Schedule) -> Schedule:
    """Returns the same schedule without removals behind the last block.

    Mappings and :func:`~tokengraph.schedule.rules.relative` name their layers, so they stay as they are.

    Example:
        >>> sparing_last(3)(4, 16)  # removed in each of 4 blocks
        [3, 3, 3, 0]
    """
    return schedule if isinstance(schedule, Mapping | Relative) else _SparingLast(schedule)


@explains
def counts_ahead(plan: Sequence[int], num_tokens: int) -> list[int]:
    """Returns the tokens before the first block and after each, if a strategy acts ahead of blocks.

    Tokens that leave by the plan after l blocks leave in the block behind them; they come back as planned.

    Args:
        plan: As :func:`~tokengraph.schedule.counts.tokens_per_layer` gives it.
        num_tokens: Patch tokens at the input.

    Example:
        >>> counts_ahead([16, 13, 10, 10], 16)
        [16, 16, 13, 10]
    """
    return [num_tokens, *(max(pair) for pair in zip(plan[:-1], plan[1:], strict=True))]


@dataclass(frozen=True)
class _SparingLast:
    schedule: int | Sequence[Removal] | Rule

    def __call__(self, depth: int, num_tokens: int) -> list[Removal]:
        removed = list(removals(self.schedule, depth, num_tokens))
        last = removed[-1]
        removed[-1] = RECONSTRUCT if isinstance(last, tuple) or last == RECONSTRUCT else 0
        return removed
