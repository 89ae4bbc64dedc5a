"""A schedule that removes nothing behind the last block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokengraph.schedule.counts import RECONSTRUCT, Schedule, removals
from tokengraph.schedule.rules import Relative, Removal, Rule


def sparing_last(schedule: Schedule) -> Schedule:
    """Returns the same schedule without removals behind the last block.

    Mappings and :func:`~tokengraph.schedule.rules.relative` name their layers, so they stay as they are.

    Example:
        >>> sparing_last(3)(4, 16)  # removed in each of 4 blocks
        [3, 3, 3, 0]
    """
    return schedule if isinstance(schedule, Mapping | Relative) else _SparingLast(schedule)


@dataclass(frozen=True)
class _SparingLast:
    schedule: int | Sequence[Removal] | Rule

    def __call__(self, depth: int, num_tokens: int) -> list[Removal]:
        removed = list(removals(self.schedule, depth, num_tokens))
        last = removed[-1]
        removed[-1] = RECONSTRUCT if isinstance(last, tuple) or last == RECONSTRUCT else 0
        return removed
