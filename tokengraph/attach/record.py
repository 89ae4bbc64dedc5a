"""The base class for records of an attached model's last run."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor


class Record:
    """The record of a model's last run, which users read as ``handle.trace``.

    Attributes:
        grid: ``(H, W)`` of the run's input map; ``None`` before the first run.
    """

    grid: tuple[int, ...] | None

    @property
    def counts(self) -> Any:
        """Returns the numbers of tokens, in the order of the run."""
        raise NotImplementedError

    @property
    def counts_worked(self) -> Any:
        """Returns the numbers of tokens that blocks worked on; :attr:`counts`, unless tokens leave inside blocks."""
        return self.counts

    def as_map(self, tokens: Tensor) -> Tensor:
        """Lays rows ``[B, H*W, C]`` of every position out as a map ``[B, C, H, W]``.

        Raises:
            RuntimeError: Before the first run.
            ValueError: If the number of rows does not fit the grid.
        """
        grid = self.grid
        if grid is None:
            raise RuntimeError("Expected a run of the model before its maps are laid out (got none). Call it first.")
        if tokens.dim() != 3 or tokens.size(1) != math.prod(grid):
            raise ValueError(f"Expected rows [B, {' * '.join(map(str, grid))}, C] (got {list(tokens.shape)}).")
        return tokens.transpose(1, 2).unflatten(2, grid).contiguous()
