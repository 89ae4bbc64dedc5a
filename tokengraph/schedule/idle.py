"""Warns of entries of a schedule that remove nothing."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence


def warn_of_idle(schedule: object, plan: Sequence[int], *, stacklevel: int = 5) -> None:
    """Warns if entries of a schedule ``{l: keep}`` remove nothing, unless they are 1.0.

    Args:
        schedule: The user's schedule; other kinds have no entries.
        plan: Tokens before the first block and after each block.
        stacklevel: As for ``warnings.warn``; the default points to the caller of ``attach``.
    """
    if not isinstance(schedule, Mapping):
        return
    idle = [
        layer
        for layer, keep in sorted(schedule.items())
        if layer and not isinstance(keep, str | tuple) and keep != 1.0 and plan[layer] == plan[layer - 1]
    ]
    if idle:
        warnings.warn(
            f"The schedule removes nothing at layers {idle}: its numbers count input tokens, or are shares of them "
            f"(tokens: {list(plan)}). For shares of the current tokens: "
            "tokengraph.schedule.relative({3: 0.7, 6: 0.7, 9: 0.7}).",
            stacklevel=stacklevel,
        )
