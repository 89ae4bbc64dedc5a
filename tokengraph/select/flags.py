"""Older attributes of strategies, which ``reads`` replaces."""

from __future__ import annotations

from typing import Any

FLAGS = ("reads_attention", "needs_class_token", "needs_map")


def reads_by_flags(select: Any, base: type) -> str:
    """Derives ``reads`` for a strategy that sets only the older attributes; ``base`` is ``Select``."""

    def says(flag: str, default: bool) -> bool:
        return default if getattr(type(select), flag) is getattr(base, flag) else getattr(select, flag)

    if says("needs_map", False):
        return "map"
    if not says("reads_attention", True):
        return "nothing"
    return "class" if says("needs_class_token", False) else "keys"
