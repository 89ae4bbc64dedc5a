"""The bipartite graph from all tokens of a grid to one destination in each cell."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.flat.tables import table


@table(64)
def upper_left(height: int, width: int, down: int, across: int) -> tuple[Tensor, Tensor, Tensor]:
    """Splits a grid into the upper left token of each whole cell, and all others; both row by row, as token ids.

    Also returns the place of each token of the grid in the second followed by the first.
    """
    ids = torch.arange(height * width).view(height, width)
    there = torch.zeros(height, width, dtype=torch.bool)
    there[: height // down * down : down, : width // across * across : across] = True
    return ids[there], ids[~there], torch.cat([ids[~there], ids[there]]).argsort()


def picked(pick: Tensor, height: int, width: int, cell: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Splits a grid as :func:`upper_left` does, with the token of place ``pick`` of each cell instead.

    Args:
        pick: ``[B, H // cell[0], W // cell[1]]`` in ``[0, cell[0] * cell[1])``, row by row within a cell.
        height: H.
        width: W.
        cell: Rows and columns of a cell.

    Returns:
        Destinations ``[B, n_b]`` and sources ``[B, n_a]``, both row by row.
    """
    down, across = cell
    rows = torch.arange(pick.size(1), device=pick.device)[:, None] * down + pick // across
    columns = torch.arange(pick.size(2), device=pick.device) * across + pick % across
    chosen = (rows * width + columns).flatten(1)
    there = torch.zeros(pick.size(0), height * width, dtype=torch.bool, device=pick.device).scatter(1, chosen, True)
    order = there.argsort(dim=1, stable=True)
    apart = height * width - chosen.size(1)
    return order[:, apart:], order[:, :apart]
