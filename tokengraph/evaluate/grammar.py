"""Parses the text of a setting; values are Python literals or bare words, and brackets may contain separators."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from typing import Any

from tokengraph import schedule as schedules
from tokengraph.schedule import Schedule

OPEN, CLOSE = "([{", ")]}"
RULES = {
    rule.__name__: rule
    for rule in (schedules.constant, schedules.linear, schedules.powers, schedules.ratio, schedules.relative)
}


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
    """Reads ``13``, ``{5: 0.5}``, ``[8, 8, 0]``, or a rule of :mod:`tokengraph.schedule`.

    Calls of rules: ``linear(8)``, ``ratio(0.9, prefix=1)``, ``powers(0.7, (3, 6))``, ``relative({3: 0.5})``.

    Raises:
        ValueError: If the text is none of these.
    """
    name, _, inside = text.partition("(")
    if inside.endswith(")") and name.strip() in RULES:
        rule = _read_rule(RULES[name.strip()], inside[:-1])
        if rule is not None:
            return rule
    value = read_value(text)
    if isinstance(value, bool) or not isinstance(value, int | list | tuple | dict):
        raise ValueError(
            f"Expected a schedule such as 13, {{5: 0.5}}, [8, 8, 0], linear(8) or relative({{3: 0.7}}) (got {text!r})."
        )
    return list(value) if isinstance(value, tuple) else value


def _read_rule(rule: Callable[..., Schedule], arguments: str) -> Schedule | None:
    """Calls a rule with arguments of one text; ``None`` if they are not its own."""
    given, named = [], {}
    for part in split(arguments, ","):
        name, equals, value = part.partition("=")
        if equals and name.strip().isidentifier():
            named[name.strip()] = read_value(value.strip())
        else:
            given.append(read_value(part))
    if any(isinstance(value, bool | str) for value in (*given, *named.values())):
        return None
    try:
        return rule(*given, **named)
    except (TypeError, AttributeError):  # the number of arguments, an unknown name, or another kind of value
        return None


def write_schedule(schedule: Any) -> str:
    """Writes the text that :func:`read_schedule` reads; a user's own rule is written as its ``repr``."""
    if isinstance(schedule, schedules.Relative):
        return f"relative({dict(schedule.shares)})"
    for name in RULES:
        if type(schedule).__name__ == f"_{name.title()}":
            own = dict(vars(schedule))
            prefix = own.pop("prefix", 0)
            return f"{name}({', '.join(map(str, own.values()))}{f', prefix={prefix}' if prefix else ''})"
    return repr(schedule)


def read_resolution(value: Any) -> int:
    """Checks a resolution.

    Raises:
        ValueError: Unless it is a whole number of pixels, at least 1.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"Expected resolution as a number of pixels, at least 1 (got {value!r}).")
    return value


def read_layers(value: Mapping[Any, Any]) -> dict[int, Any]:
    """Turns the layers of a mapping into ints: JSON has them as text.

    Raises:
        ValueError: If one is no whole number.
    """
    try:
        return {int(layer): keep for layer, keep in value.items()}
    except (TypeError, ValueError) as error:
        raise ValueError(f"Expected layers of a schedule as whole numbers (got {list(value)}).") from error
