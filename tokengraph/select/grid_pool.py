"""Average pooling over cells of the grid: the control that looks at no feature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokengraph.cost import Cost
from tokengraph.errors import check_finite, check_mask
from tokengraph.flat.tables import table
from tokengraph.maps.hard import Assignment
from tokengraph.select.base import Select
from tokengraph.select.tokens import Tokens, clamp_budget, valid_counts


def grid_pool(pos: Tensor, keep: int | list[int], grid: tuple[int, int], *, mask: Tensor | None = None) -> Assignment:
    """Pools tokens into cells of equal counts: bands from top to bottom, each cut from left to right.

    Gives exactly ``keep`` cells for any ``keep``, any rectangle and any positions. On a full grid with ``keep = h * w``
    cells that divide it, these are the cells of average pooling.

    Args:
        pos: Positions in patch units, ``[B, N, 2]`` as (y, x).
        keep: Cells an image, at least 1; clamped to N.
        grid: ``(H, W)`` of the patches, for the shape of the cells.
        mask: ``[B, N]`` bool, True where there is a token; real tokens first.

    Raises:
        ValueError: If ``keep`` is below 1, positions are not finite or ``mask`` has holes.

    Cost: four sorts of ``[B, N]``; no host synchronisation without a mask.

    Example:
        >>> grid_pool(torch.tensor([[[0.5, 0.5], [0.5, 1.5], [1.5, 0.5], [1.5, 1.5]]]), 2, (2, 2)).cluster.tolist()
        [0, 1, 0, 1]

    Source: our own; the packing is sort-tile-recursive (Leutenegger et al., ICDE 1997).
    """
    if pos.dim() != 3 or pos.size(2) != 2:
        raise ValueError(f"Expected pos of shape [B, N, 2] (got {list(pos.shape)}).")
    check_mask(mask, pos, leading=True)
    check_finite(pos if mask is None else pos[mask], "positions")
    return _grid_pool(pos, keep, grid, mask)


@dataclass(frozen=True)
class GridPool(Select):
    """Average pooling over grid cells as a strategy, after a block; see :func:`grid_pool`."""

    name: ClassVar[str] = "grid-pool"
    alone: ClassVar[bool] = True
    reads_attention: ClassVar[bool] = False
    placement: ClassVar[str] = "after"

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> Assignment:
        """Maps the tokens to clusters; see :class:`tokengraph.Select`."""
        pos = tokens.pos
        assert tokens.grid is not None  # positions come from it
        return _grid_pool(pos, budget, tokens.grid, tokens.mask)

    def cost(self, num_tokens: int, keep: int, channels: int, head_width: int = 64) -> Cost:
        """Two sorts of the positions."""
        return Cost(40 * num_tokens, 32 * num_tokens)


def _grid_pool(pos: Tensor, keep: int | list[int], grid: tuple[int, int], mask: Tensor | None) -> Assignment:
    budget = clamp_budget(keep, pos, mask)
    if not isinstance(budget, list):
        return Assignment.from_dense(_cells(pos, budget, grid), budget)
    counts = valid_counts(pos, mask)
    cluster = torch.zeros(pos.shape[:2], dtype=torch.long, device=pos.device)
    for b, (count, cells) in enumerate(zip(counts, budget, strict=True)):
        if count:
            cluster[b, :count] = _cells(pos[b : b + 1, :count], cells, grid)[0]
    return Assignment.from_dense(cluster, budget, mask=mask)


def _cells(pos: Tensor, keep: int, grid: tuple[int, int]) -> Tensor:
    """Cell of each token, ``[B, N]`` in ``[0, keep)``, each cell with at least one token."""
    tokens = pos.size(1)
    if tokens == 0:
        return torch.zeros(pos.shape[:2], dtype=torch.long, device=pos.device)
    band, number = (t.to(pos.device) for t in _plan(tokens, keep, int(grid[0]), int(grid[1])))
    y, x = pos.unbind(dim=2)
    order = _refine(x.argsort(dim=1, stable=True), y)
    by_x = x.gather(1, order).argsort(dim=1, stable=True)
    in_band = band[by_x].argsort(dim=1, stable=True)
    order = order.gather(1, by_x.gather(1, in_band))
    return torch.empty_like(order).scatter_(1, order, number.expand_as(order))


def _refine(order: Tensor, key: Tensor) -> Tensor:
    """Sorts by ``key``, ties as in ``order``."""
    return order.gather(1, key.gather(1, order).argsort(dim=1, stable=True))


@table(256)
def _plan(tokens: int, keep: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Band of each place in reading order, and cell of each place once bands are sorted from left to right."""
    ideal = (keep * height / max(width, 1)) ** 0.5
    fitting = [h for h in range(1, keep + 1) if keep % h == 0 and ideal / 1.5 <= h <= ideal * 1.5]
    bands = min(fitting, key=lambda h: abs(h - ideal)) if fitting else min(max(round(ideal), 1), keep)
    first = torch.arange(bands + 1) * keep // bands  # first cell of each band
    edge = first * tokens // keep  # first place of each band
    place = torch.arange(tokens)
    band = torch.searchsorted(edge, place, right=True) - 1
    cells, size = first.diff()[band], edge.diff()[band]
    return band, first[band] + (place - edge[band]) * cells // size
