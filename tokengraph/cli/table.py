"""Plain tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Returns aligned columns; the last one is not padded.

    Example:
        >>> print(table(["name", "keeps"], [["tome", 8], ["ailurus", 16]]))
        name     keeps
        tome     8
        ailurus  16
    """
    cells = [[str(c) for c in row] for row in (columns, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells)
