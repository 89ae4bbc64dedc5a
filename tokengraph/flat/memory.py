"""The memory that blocks of pairwise numbers may take; methods that look at all pairs work block by block."""

from __future__ import annotations

import torch

DEFAULT = 256 * 2**20
_budget = DEFAULT


class set_memory_budget:  # noqa: N801  # named as torch.set_grad_enabled, which it resembles
    """Sets how many bytes the largest block of pairwise distances or cosines may take, in all threads.

    As a context manager it restores the old budget at the end.

    Args:
        budget: Bytes, at least 1; 256 MB unless it is set. A method may hold a few such blocks at a time.

    Raises:
        ValueError: If it is below 1.
        TypeError: If it is no int.

    Example:
        >>> with set_memory_budget(64 * 2**20):
        ...     memory_budget()
        67108864
    """

    def __init__(self, budget: int) -> None:
        global _budget
        if isinstance(budget, bool) or not isinstance(budget, int):
            raise TypeError(f"Expected budget as an int, in bytes (got {budget!r}).")
        if budget < 1:
            raise ValueError(f"Expected a budget of at least 1 byte (got {budget}).")
        self.before, _budget = _budget, budget

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        global _budget
        _budget = self.before


def memory_budget() -> int:
    """Returns the bytes that the largest block of pairwise numbers may take."""
    return _budget


def rows_within(images: int, width: int, rows: int, itemsize: int = 4, *, blocks: int = 1) -> int:
    """Returns how many rows of ``width`` numbers fit the budget, at least 1 and at most ``rows``.

    Compiled code takes all rows at once, because a number that depends on the batch would fix the batch.

    Args:
        images: B; each has that many rows in a block.
        width: Numbers in a row.
        rows: Rows of an image.
        itemsize: Bytes of a number.
        blocks: Blocks of that size that the caller holds at a time.
    """
    if torch.compiler.is_compiling():
        return max(1, rows)
    return max(1, min(rows, memory_budget() // max(1, images * width * itemsize * blocks)))
