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


def grid_pool(pos: Tensor, keep: int | list[int], grid: tuple[int, ...], *, mask: Tensor | None = None) -> Assignment:
    """Pools tokens into cells of equal counts: bands from top to bottom, each cut from left to right.

    A video is first cut into spans of time.

    Gives exactly ``keep`` cells for any ``keep``, any rectangle and any positions. On a full grid with ``keep = h * w``
    cells that divide it, these are the cells of average pooling.

    Args:
        pos: Positions in patch units, ``[B, N, 2]`` as (y, x); ``[B, N, 3]`` as (t, y, x) for a video.
        keep: Cells an image, at least 1; clamped to N.
        grid: ``(H, W)`` of the patches, for the shape of the cells; ``(T, H, W)`` for a video.
        mask: ``[B, N]`` bool, True where there is a token; real tokens first.

    Raises:
        ValueError: If ``keep`` is below 1, positions are not finite or ``mask`` has holes.

    Cost: four sorts of ``[B, N]``, eight for a video; no host synchronisation without a mask.

    Example:
        >>> grid_pool(torch.tensor([[[0.5, 0.5], [0.5, 1.5], [1.5, 0.5], [1.5, 1.5]]]), 2, (2, 2)).cluster.tolist()
        [0, 1, 0, 1]

    Source: our own; the packing is sort-tile-recursive (Leutenegger et al., ICDE 1997).
    """
    if len(grid) not in (2, 3):
        raise ValueError(f"Expected grid as (H, W), or (T, H, W) for a video (got {tuple(grid)}).")
    if pos.dim() != 3 or pos.size(2) != len(grid):
        raise ValueError(f"Expected pos of shape [B, N, {len(grid)}] for grid={tuple(grid)} (got {list(pos.shape)}).")
    check_mask(mask, pos, leading=True)
    check_finite(pos if mask is None else pos[mask], "positions")
    return _grid_pool(pos, keep, grid, mask)


@dataclass(frozen=True)
class GridPool(Select):
    """Average pooling over grid cells as a strategy, after a block; see :func:`grid_pool`."""

    name: ClassVar[str] = "grid-pool"
    alone: ClassVar[bool] = True
    reads: ClassVar[str] = "nothing"
    placement: ClassVar[str] = "after"

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> Assignment:
        """Maps the tokens to clusters; see :class:`tokengraph.Select`."""
        pos = tokens.pos
        assert tokens.grid is not None  # positions come from it
        return _grid_pool(pos, budget, tokens.grid, tokens.mask)

    def cost(self, num_tokens: int, keep: int, channels: int, head_width: int = 64) -> Cost:
        """Two sorts of the positions."""
        return Cost(40 * num_tokens, 32 * num_tokens)


def _grid_pool(pos: Tensor, keep: int | list[int], grid: tuple[int, ...], mask: Tensor | None) -> Assignment:
    budget = clamp_budget(keep, pos, mask)
    if not isinstance(budget, list):
        return Assignment.from_dense(_cells(pos, budget, grid), budget)
    counts = valid_counts(pos, mask)
    cluster = torch.zeros(pos.shape[:2], dtype=torch.long, device=pos.device)
    for b, (count, cells) in enumerate(zip(counts, budget, strict=True)):
        if count:
            cluster[b, :count] = _cells(pos[b : b + 1, :count], cells, grid)[0]
    return Assignment.from_dense(cluster, budget, mask=mask)


def _cells(pos: Tensor, keep: int, grid: tuple[int, ...]) -> Tensor:
    """Cell of each token, ``[B, N]`` in ``[0, keep)``, each cell with at least one token."""
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


def _video_cells(pos: Tensor, keep: int, grid: tuple[int, ...]) -> Tensor:
    """:func:`_cells` for positions (t, y, x): spans of time, cut into bands, cut into cells."""
    span, band, number = (t.to(pos.device) for t in _video_plan(pos.size(1), keep, *map(int, grid)))
    t, y, x = pos.unbind(dim=2)
    order = _refine(_refine(x.argsort(dim=1, stable=True), y), t)
    order = _regroup(_refine(_refine(_refine(order, t), x), y), order, span)
    order = _regroup(_refine(_refine(_refine(order, t), y), x), order, band)
    return torch.empty_like(order).scatter_(1, order, number.expand_as(order))


def _regroup(wanted: Tensor, order: Tensor, group: Tensor) -> Tensor:
    """Sorts as ``wanted`` does within each group; ``group`` says which one each place of ``order`` is in."""
    mine = torch.empty_like(order).scatter_(1, order, group.expand_as(order))
    return _refine(wanted, mine)


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


@table(256)
def _video_plan(tokens: int, keep: int, frames: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Span of each place in order of time, band once spans are sorted by rows, cell once bands are by columns.

    As many spans as make the cells about cubes; a number that divides ``keep`` is taken where it is near enough.
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
        bands += cells  # more numbers than there are bands: only their order matters
    return torch.cat(span), torch.cat(band), torch.cat(number)
