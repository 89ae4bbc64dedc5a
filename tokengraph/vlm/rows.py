"""Reduces the features of one modality, tile by tile, in batches of equal tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral

import torch
from torch import Tensor

from tokengraph.maps.hard import Assignment
from tokengraph.select.base import Select
from tokengraph.select.rounds import choose, reduce_rows, representatives
from tokengraph.vlm.budget import split_budget
from tokengraph.vlm.families.base import Tile
from tokengraph.vlm.record import Group, ImageRecord, Reduction
from tokengraph.vlm.visual import Visual


@dataclass(eq=False)
class Reduced:
    """Features that remain, and how they came about; fields as in :class:`Visual` and :class:`Reduction`."""

    modality: str
    tiles: list[list[Tile]]
    rows: Tensor
    deep: list[Tensor]
    kept: list[int]
    stands: Tensor
    reduction: Reduction = field(repr=False)

    def images(self, prompts: Sequence[int]) -> list[ImageRecord]:
        """One record an image; ``prompts`` are the batch rows in which they stand."""
        counts, stands = self.reduction.counts, self.stands.split(self.kept)
        firsts = [sum(counts[:i]) for i in range(len(counts))]
        return [
            ImageRecord(
                self.modality, prompts[i], self.tiles[i], counts[i], self.kept[i], stands[i] - firsts[i],
                self.reduction, i,
            )
            for i in range(len(counts))
            if counts[i]
        ]  # fmt: skip


def reduce_visual(
    visual: Visual,
    tiles: list[list[Tile]],
    select: Select,
    keep: int | float,
    *,
    across: bool,
) -> Reduced:
    """Reduces the features of one modality.

    Args:
        visual: The features.
        tiles: The tiles of each image, with rows counted within the image.
        select: The strategy.
        keep: As for :func:`tokengraph.vlm.reduce`.
        across: Choose among all tiles of an image together.
    """
    if isinstance(keep, Integral) and keep > (most := max(visual.counts)):
        raise ValueError(
            f"Expected keep of at most {most} tokens, those of the largest {visual.modality} (got keep={keep}). "
            "keep=1.0 keeps all."
        )
    tiles = [[_together(each)] if across and len(each) > 1 else each for each in tiles]
    device, total = visual.rows.device, visual.rows.size(0)
    jobs: dict[tuple, list[Tensor]] = {}
    start = 0
    for count, each in zip(visual.counts, tiles, strict=True):
        budgets = split_budget(keep, [t.rows.numel() for t in each]) if each else []
        for tile, budget in zip(each, budgets, strict=True):
            jobs.setdefault((tile.rows.numel(), budget, tile.grid), []).append(tile.rows + start)
        start += count
    groups, stands, parts = [], [], []
    for (count, budget, grid), rows in jobs.items():
        flat = torch.cat(rows)
        x = visual.rows[flat]
        with torch.no_grad():
            seen = None if visual.watched is None else visual.watched.attention(flat.view(-1, count), total)
            step = choose(select, x.detach().view(-1, count, x.size(1)), budget, grid, seen)
        groups.append(Group(flat, step, step.cluster))  # the place follows when all clusters are known
        stands.append(flat[representatives(step)])
        parts.append([reduce_rows(step, f, select)[0] for f in (x, *(d[flat] for d in visual.deep))])
    loose = torch.ones(total, dtype=torch.bool, device=device)
    for group in groups:
        loose[group.rows] = False
    if len(rest := loose.nonzero().squeeze(1)):  # rows of no tile remain as they are
        groups.append(Group(rest, Assignment.identity(rest.numel(), device=device), rest))
        stands.append(rest)
        parts.append([visual.rows[rest], *(d[rest] for d in visual.deep)])
    return _in_order(visual, tiles, groups, stands, parts)


def _in_order(
    visual: Visual, tiles: list[list[Tile]], groups: list[Group], stands: list[Tensor], parts: list[list[Tensor]]
) -> Reduced:
    """Lays the clusters of all groups out in the order of the tokens whose places they take."""
    joined = torch.cat(stands)
    order = joined.argsort()
    place = torch.empty_like(order)
    place[order] = torch.arange(order.numel(), device=order.device)
    pieces = place.split([s.numel() for s in stands])
    groups = [replace(group, place=piece) for group, piece in zip(groups, pieces, strict=True)]
    rows, *deep = (torch.cat(each)[order] for each in zip(*parts, strict=True))
    ends = torch.tensor(visual.counts, device=order.device).cumsum(0)
    kept = torch.bincount(torch.bucketize(joined, ends, right=True), minlength=len(visual.counts)).tolist()
    stood = joined[order]
    reduction = Reduction(groups, visual.counts, kept, stood)
    return Reduced(visual.modality, tiles, rows, deep, kept, stood, reduction)


def _together(tiles: list[Tile]) -> Tile:
    """All tiles of an image as one: a grid ``(T, H, W)`` if they are alike, otherwise on no grid."""
    grids = {t.grid for t in tiles}
    grid = next(iter(grids)) if len(grids) == 1 else None
    return Tile(torch.cat([t.rows for t in tiles]), None if grid is None else (len(tiles), *grid))
