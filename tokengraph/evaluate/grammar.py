"""Parses the text of a setting; values are Python literals or bare words, and brackets may contain separators."""

from __future__ import annotations

import ast
from typing import Any

from tokengraph import schedule as schedules
from tokengraph.schedule import Schedule

OPEN, CLOSE = "([{", ")]}"
CALLS = {"constant": schedules.constant, "linear": schedules.linear, "ratio": schedules.ratio}


def split(text: str, separator: str) -> list[str]:
    """Splits at ``separator`` outside brackets and quotes; parts are stripped.

    Raises:
        ValueError: If brackets or quotes are not closed.

    Example:
        >>> split("expedite:{5: 14},clusters=(14, 14)", ",")
        ['expedite:{5: 14}', 'clusters=(14, 14)']
    """
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        else:
            depth += (letter in OPEN) - (letter in CLOSE)
        if letter == separator and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += letter
        if depth < 0:
            break
    if depth or quote:
        raise ValueError(f"Expected brackets and quotes that close (got {text!r}).")
    return [part.strip() for part in parts]


def read_value(text: str) -> Any:
    """Reads a Python literal; a bare word is a string: ``"half-log"``, ``"mlerp"``."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def read_schedule(text: str) -> Schedule:
    """Reads ``13``, ``{5: 0.5}``, ``[8, 8, 0]``, ``linear(8)``, ``ratio(0.9)`` or ``relative({3: 0.7})``.

    Raises:
        ValueError: If the text is none of these.
    """
    name, _, inside = text.partition("(")
    if inside.endswith(")") and name.strip() in (*CALLS, "relative"):
        value = read_value(inside[:-1])
        if name.strip() == "relative" and isinstance(value, dict):
            return schedules.relative(value)
        if name.strip() != "relative" and isinstance(value, int | float) and not isinstance(value, bool):
            return CALLS[name.strip()](value)  # type: ignore[arg-type]
    value = read_value(text)
    if isinstance(value, bool) or not isinstance(value, int | list | tuple | dict):
        raise ValueError(
            f"Expected a schedule such as 13, {{5: 0.5}}, [8, 8, 0], linear(8) or relative({{3: 0.7}}) (got {text!r})."
        )
    return list(value) if isinstance(value, tuple) else value


def write_schedule(schedule: Any) -> str:
    """Writes the text that :func:`read_schedule` reads; a user's own rule is written as its ``repr``."""
    if isinstance(schedule, schedules.Relative):
        return f"relative({dict(schedule.shares)})"
    for name in CALLS:
        if type(schedule).__name__ == f"_{name.title()}":
            return f"{name}({next(iter(vars(schedule).values()))})"
    return repr(schedule)
