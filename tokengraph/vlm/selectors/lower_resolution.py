"""The control: the features of a smaller image, as average pooling approximates them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokengraph.cost import Cost
from tokengraph.maps.hard import Assignment
from tokengraph.select.base import Select
from tokengraph.select.tokens import Tokens, clamp_budget


@dataclass(frozen=True)
class LowerResolution(Select):
    """Averages cells of the grid, as many as the budget allows in the image's own shape.

    A control for every method: the grid of cells is the largest of the image's aspect ratio with at most ``keep``
    cells. Encoding a smaller image costs less in the tower too; measure that with the processor's size.
    """

    needs_grid: ClassVar[bool] = True
    reads: ClassVar[str] = "nothing"
    placement: ClassVar[str] = "after"

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> Assignment:
        """Maps the tokens to clusters; see :class:`tokengraph.Select`."""
        keep = clamp_budget(budget, tokens.x, tokens.mask)
        if tokens.grid is None or not tokens.full or isinstance(keep, list):
            raise ValueError("Expected the full grid of equal images (got other tokens).")
        cells = cells_within(tokens.grid, keep)
        cluster = _labels(tokens.grid, cells, tokens.x.device)
        total = math.prod(cells)
        return Assignment.from_dense(cluster.expand(tokens.x.size(0), -1), total)

    def makes(self, keep: int, num_tokens: int, grid: tuple[int, int] | None = None) -> int:
        """The cells that fit."""
        return min(keep, num_tokens) if grid is None else math.prod(cells_within(grid, keep))

    def cost(self, num_tokens: int, keep: int, channels: int, head_width: int = 64) -> Cost:
        """Nothing: the cells depend on the grid alone."""
        return Cost(0, 0)


def cells_within(grid: tuple[int, ...], keep: int) -> tuple[int, ...]:
    """Cells along each axis: the image's shape scaled down until at most ``keep`` remain, then filled up.

    Example:
        >>> cells_within((24, 24), 144), cells_within((12, 6), 20)
        ((12, 12), (6, 3))
    """
    total = math.prod(grid)
    if keep >= total:
        return tuple(grid)
    scale = (keep / total) ** (1 / len(grid))
    cells = [max(1, int(side * scale + 1e-9)) for side in grid]
    while math.prod(cells) > keep:  # a side of one cell cannot shrink further
        longest = max(range(len(cells)), key=lambda axis: cells[axis])
        cells[longest] -= 1
    grown = True
    while grown:
        grown = False
        for axis in sorted(range(len(cells)), key=lambda axis: cells[axis] / grid[axis]):
            more = math.prod(cells) // cells[axis] * (cells[axis] + 1)
            if cells[axis] < grid[axis] and more <= keep and cells[axis] / grid[axis] < scale:
                cells[axis], grown = cells[axis] + 1, True
                break
    return tuple(cells)


def _labels(grid: tuple[int, ...], cells: tuple[int, ...], device: torch.device) -> Tensor:
    label = torch.zeros(1, dtype=torch.long, device=device)
    for side, count in zip(grid, cells, strict=True):
        line = torch.arange(side, device=device) * count // side
        label = (label[:, None] * count + line).flatten()
    return label
