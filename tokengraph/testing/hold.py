"""Runs laws over one subject, and names the first broken one."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Sequence
from typing import Any


def hold(laws: Sequence[Callable[[Any], None]], subject: Any, name: str, without: Sequence[str] = ()) -> None:
    """Runs each law over ``subject``.

    Args:
        laws: Functions that raise if their law is broken.
        subject: Their argument.
        name: The name of the subject in messages.
        without: Names of laws to leave out.

    Raises:
        AssertionError: If a law raises any error; the message names the law, says what it asks, and has the error.
        ValueError: If ``without`` names an unknown law.
    """
    known = [law.__name__ for law in laws]
    left_out = [without] if isinstance(without, str) else list(without)
    for given in left_out:
        if given not in known:
            raise ValueError(f"Expected without= to name laws (got {given!r}). Known: {', '.join(known)}.")
    for law in laws:
        if law.__name__ in left_out:
            continue
        try:
            law(subject)
        except Exception as error:
            message = f"{name} breaks the law {law.__name__!r}: {_what_failed(error)}"
            asks = (inspect.getdoc(law) or "").split("\n\n")[0].replace("\n", " ")
            raise AssertionError(f"{message}\nThe law: {asks}" if asks else message) from error


def _what_failed(error: Exception) -> str:
    """The error's own words; for a bare ``assert``, its line of code."""
    if not isinstance(error, AssertionError):
        return f"{type(error).__name__}: {error}"
    return str(error) or next((str(f.line) for f in reversed(traceback.extract_tb(error.__traceback__)) if f.line), "")
