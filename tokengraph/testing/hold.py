"""Runs laws over one subject, and names the first broken one."""

from __future__ import annotations

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
        AssertionError: If a law raises any error; the message names the law and the error.
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
            kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            raise AssertionError(f"{name} breaks the law {law.__name__!r}: {kind}{error}") from error
