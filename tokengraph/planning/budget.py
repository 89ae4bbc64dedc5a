"""Reads the budget of a plan."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

from tokengraph.planning.space import Budget

HINTS = {
    "speedup": "a factor above 1, as 1.5",
    "cost": "a share in (0, 1], as 0.5",
    "time": "milliseconds of a batch above 0",
    "tokens": "a number of at least 1, or a share in (0, 1)",
}


def read_budget(**given: Any) -> Budget:
    """Reads the one budget that is given.

    Raises:
        ValueError: If not exactly one is given, or it is out of range.
        TypeError: If it is no number.
    """
    asked = {kind: value for kind, value in given.items() if value is not None}
    if len(asked) != 1:
        raise ValueError(
            f"Expected one budget of {', '.join(HINTS)} (got {', '.join(asked) or 'none'}). For example cost=0.5."
        )
    kind, value = next(iter(asked.items()))
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"Expected {kind} as {HINTS[kind]} (got {value!r}).")
    number = int(value) if isinstance(value, Integral) else float(value)
    right = (
        math.isfinite(number)
        and {
            "speedup": number >= 1,
            "cost": 0 < number <= 1,
            "time": number > 0,
            "tokens": number >= 1 if isinstance(number, int) else 0 < number <= 1,
        }[kind]
    )
    if not right:
        raise ValueError(f"Expected {kind} as {HINTS[kind]} (got {value!r}).")
    return Budget(kind, number)
