"""Packs tokens into grid cells with equal counts."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.edges.grid import grid_positions
from tokengraph.flat.tables import table


def pack_cells(pos: Tensor, keep: int, grid: tuple[int, ...]) -> Tensor:
    """Returns each token's cell, ``[B, N]`` in ``[0, keep)``; every cell has at least one token."""
    tokens = pos.size(1)
    if tokens == 0:
        return torch.zeros(pos.shape[:2], dtype=torch.long, device=pos.device)
    if len(grid) == 3:
        return _video_cells(pos, keep, grid)
    band, number = (t.to(pos.device) for t in _plan(tokens, keep, int(grid[0]), int(grid[1])))
    y, x = pos.unbind(dim=2)
    order = _refine(x.argsort(dim=1, stable=True), y)
    by_x = x.gather(1, order).argsort(dim=1, stable=True)
    in_band = band[by_x].argsort(dim=1, stable=True)
    order = order.gather(1, by_x.gather(1, in_band))
    return torch.empty_like(order).scatter_(1, order, number.expand_as(order))


def grid_cells(keep: int, grid: tuple[int, ...], device: torch.device) -> Tensor:
    """Returns the cell of each patch of a whole grid, ``[1, N]``, from a cache; callers must not write into it."""
    return _grid_cells(keep, str(device), *grid)


@table(256)
def _grid_cells(keep: int, device: str, *grid: int) -> Tensor:
    return pack_cells(grid_positions(grid)[None], keep, grid).to(device)


def _video_cells(pos: Tensor, keep: int, grid: tuple[int, ...]) -> Tensor:
    """:func:`pack_cells` for positions (t, y, x): spans of time, cut into bands, cut into cells."""
    span, band, number = (t.to(pos.device) for t in _video_plan(pos.size(1), keep, *map(int, grid)))
    t, y, x = pos.unbind(dim=2)
    order = _refine(_refine(x.argsort(dim=1, stable=True), y), t)
    order = _regroup(_refine(_refine(_refine(order, t), x), y), order, span)
    order = _regroup(_refine(_refine(_refine(order, t), y), x), order, band)
    return torch.empty_like(order).scatter_(1, order, number.expand_as(order))


def _regroup(wanted: Tensor, order: Tensor, group: Tensor) -> Tensor:
    """Sorts by ``wanted`` within each group; ``group`` has the group of each position in ``order``."""
    mine = torch.empty_like(order).scatter_(1, order, group.expand_as(order))
    return _refine(wanted, mine)


def _refine(order: Tensor, key: Tensor) -> Tensor:
    """Sorts by ``key``; ties keep their order in ``order``."""
    return order.gather(1, key.gather(1, order).argsort(dim=1, stable=True))


@table(256)
def _plan(tokens: int, keep: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Returns the band of each row-major position, and the cell of each position after bands are sorted by column."""
    ideal = (keep * height / max(width, 1)) ** 0.5
    fitting = [h for h in range(1, keep + 1) if keep % h == 0 and ideal / 1.5 <= h <= ideal * 1.5]
    bands = min(fitting, key=lambda h: abs(h - ideal)) if fitting else min(max(round(ideal), 1), keep)
    first = torch.arange(bands + 1) * keep // bands  # first cell of each band
    edge = first * tokens // keep  # first place of each band
    place = torch.arange(tokens)
    band = torch.searchsorted(edge, place, right=True) - 1
    cells, size = first.diff()[band], edge.diff()[band]
    return band, first[band] + (place - edge[band]) * cells // size


@table(256)
def _video_plan(tokens: int, keep: int, frames: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the span of each position by time, the band after sorting spans by row, the cell after sorting by column.

    The number of spans makes cells roughly cubic; a nearby number that divides ``keep`` is preferred.
    """
    ideal = (keep * frames * frames / max(height * width, 1)) ** (1 / 3)
    fitting = [s for s in range(1, keep + 1) if keep % s == 0 and ideal / 1.5 <= s <= ideal * 1.5]
    spans = min(fitting, key=lambda s: abs(s - ideal)) if fitting else min(max(round(ideal), 1), keep)
    first = (torch.arange(spans + 1) * keep // spans).tolist()
    edge = [cell * tokens // keep for cell in first]
    span, band, number, bands = [], [], [], 0
    for i in range(spans):
        count, cells = edge[i + 1] - edge[i], first[i + 1] - first[i]
        rows, cell = _plan(count, cells, height, width)
        span.append(torch.full((count,), i))
        band.append(rows + bands)
        number.append(cell + first[i])
        bands += cells  # some numbers stay unused; only their order matters
    return torch.cat(span), torch.cat(band), torch.cat(number)
