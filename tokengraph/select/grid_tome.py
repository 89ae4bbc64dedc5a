"""Merging into destinations on a grid, as tomesd does: one token of each cell takes the most similar others in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokengraph.cost import Cost, distance_cost
from tokengraph.errors import check_finite, check_grid, check_tokens
from tokengraph.flat.layout import take_rows
from tokengraph.kinds import explains
from tokengraph.maps.hard import Assignment
from tokengraph.select.around import Around
from tokengraph.select.base import Select
from tokengraph.select.parts.choices.roots import all_single
from tokengraph.select.parts.graphs.destinations import picked, upper_left
from tokengraph.select.parts.graphs.halves import cosines, unit_rows
from tokengraph.select.tokens import Tokens, clamp_budget, valid_counts

Grid = tuple[int, int]


@explains
def grid_destinations(
    x: Tensor, grid: Grid, keep: int, *, cell: tuple[int, int] = (2, 2), pick: Tensor | None = None
) -> Assignment:
    """Merges the ``N - keep`` tokens that resemble a destination most into it; each cell of the grid has one.

    Cells lie from the upper left corner; tokens right of or below the last whole cell are sources. Each source has its
    most similar destination by cosine.

    Args:
        x: Token features of the full grid, ``[B, N, C]``.
        grid: ``(H, W)``.
        keep: Clusters an image; as few as there are cells, if it is below that. A grid smaller than a cell has no
            destination and keeps all.
        cell: Rows and columns of a cell.
        pick: Which place of each cell is the destination, ``[B or 1, H // cell[0], W // cell[1]]`` int64, row by row
            within the cell; ``None``: the upper left.

    Returns:
        The map over ``B*N`` tokens. Clusters come in the published order: sources that stay by falling similarity, then
        destinations row by row. Without merges every token keeps its place.

    Raises:
        ValueError: If arguments do not fit, ``keep`` is below 1, or tokens are not finite.

    Cost: ``O(B n_a n_b C)``, at 2 x 2 three sixteenths of ``N^2``; no host synchronisation without ``pick``.

    Example:
        >>> x = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.5, 0.5]]])
        >>> grid_destinations(x, (2, 2), 3).cluster.tolist()
        [2, 2, 1, 0]

    Source: Bolya and Hoffman, *Token Merging for Fast Stable Diffusion*, CVPR workshop 2023, and its code. Differs:
    random destinations are drawn by the caller and may differ by image; a grid smaller than a cell keeps all tokens
    (published: an error); zero vectors have cosine 0; ties go to the lower index.
    """
    check_tokens(x)
    height, width = check_grid(grid, x.size(1))
    check_finite(x)
    cells = (height // _cell(cell)[0], width // cell[1])
    if pick is not None:
        if pick.dim() != 3 or pick.size(0) not in (1, x.size(0)) or tuple(pick.shape[1:]) != cells:
            raise ValueError(f"Expected pick of shape [1 or B, {cells[0]}, {cells[1]}] (got {list(pick.shape)}).")
        if pick.numel() and not (0 <= int(pick.min()) and int(pick.max()) < math.prod(cell)):
            raise ValueError(f"Expected pick in [0, {math.prod(cell)}) (got {int(pick.min())} to {int(pick.max())}).")
    keep = clamp_budget(keep, x, None)  # type: ignore[assignment]
    return _grid_destinations(x, (height, width), keep, cell, pick)


@dataclass(frozen=True)
class GridToMe(Select):
    """Destinations on the grid as a strategy, on the tokens; see :func:`grid_destinations`.

    By itself it acts once, between attention and MLP. As published, around the attention of each block, it is
    :meth:`published`. Graph: bipartite, a destination a cell. Choice: the heaviest edges. Reduction: mean.

    Args:
        cell: Rows and columns of a cell; a step leaves at least a token for each.
        seed: Draws the destinations, the same in all images, anew in each layer; ``None``: the upper left tokens.
    """

    name: ClassVar[str] = "grid-tome"
    needs_grid: ClassVar[bool] = True
    reads: ClassVar[str] = "nothing"
    cell: tuple[int, int] = (2, 2)
    seed: int | None = None

    def __post_init__(self) -> None:
        _cell(self.cell)

    @staticmethod
    def published(seed: int | None = None) -> Select:
        """Returns tomesd's form: around the attention of each block, without sizes, cells of 2 x 2.

        Give :func:`tokengraph.attach` half of the tokens for its default ratio: ``{0: 0.5}``. ``seed`` stands for its
        random destinations.
        """
        return Around(GridToMe(seed=seed), sizes=False)

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> Assignment:
        """Maps the tokens to clusters; see :class:`tokengraph.Select`."""
        if tokens.layer >= 0 and not tokens.full and tokens.grid is not None:  # had too few cells for its budget before
            return all_single(tokens.x, valid_counts(tokens.x, tokens.mask), tokens.mask)
        if tokens.grid is None or not tokens.full or len(tokens.grid) != 2:
            raise ValueError(
                f"Expected the full grid (H, W) for GridToMe (got {tokens.x.size(1)} tokens"
                f"{'' if tokens.grid is None else f' of a grid {tokens.grid}'}). It acts once, before anything else "
                "removes tokens, or around a module: tg.Around(tg.GridToMe())."
            )
        keep = clamp_budget(budget, tokens.x, None)
        if isinstance(keep, list):
            raise ValueError(f"Expected one budget for all images of a batch (got {keep}). Go image by image.")
        height, width = tokens.grid
        pick = None
        if self.seed is not None:
            draw = torch.Generator().manual_seed(self.seed + 1000003 * (tokens.layer + 1))
            shape = (1, height // self.cell[0], width // self.cell[1])
            pick = torch.randint(math.prod(self.cell), shape, generator=draw).to(tokens.x.device)
        return _grid_destinations(tokens.x, (height, width), keep, self.cell, pick)

    def makes(self, keep: int, num_tokens: int, grid: Grid | None = None) -> int:
        """At least one token for each cell; without a grid: as if it were square, if it can be."""
        side = math.isqrt(num_tokens)
        if grid is None and side * side != num_tokens:
            return min(keep, num_tokens)
        height, width = grid or (side, side)
        cells = (height // self.cell[0]) * (width // self.cell[1])
        return min(max(keep, cells or num_tokens), num_tokens)

    def fewest(self, num_tokens: int) -> int:
        """One token for each cell; where the grid is not square, as if it had whole cells alone."""
        side = math.isqrt(num_tokens)
        if side * side == num_tokens:
            return self.makes(min(1, num_tokens), num_tokens)
        return max(num_tokens // math.prod(self.cell), min(1, num_tokens))

    def cost(self, num_tokens: int, keep: int, channels: int, head_width: int = 64) -> Cost:
        """Products between sources and destinations, and a maximum over each row."""
        cells = num_tokens // math.prod(self.cell)
        edges = (num_tokens - cells) * cells
        return distance_cost(num_tokens - cells, cells, channels) + Cost(edges, 4 * edges)


def _cell(cell: tuple[int, int]) -> tuple[int, int]:
    if len(cell) != 2 or any(isinstance(side, bool) or not isinstance(side, int) or side < 1 for side in cell):
        raise ValueError(f"Expected cell as (rows, columns), each at least 1 (got {cell!r}).")
    return cell


def _grid_destinations(x: Tensor, grid: Grid, keep: int, cell: tuple[int, int], pick: Tensor | None) -> Assignment:
    (height, width), images = grid, x.size(0)
    tokens = height * width
    cells = (height // cell[0]) * (width // cell[1])
    removed = min(tokens - keep, tokens - cells) if cells else 0
    if removed <= 0 or images == 0:
        return all_single(x, tokens, None)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        unit = unit_rows(x)
        if pick is None:
            to, source, back = (t.to(x.device) for t in upper_left(height, width, *cell))
            unit_to, unit_source = unit[:, to], unit[:, source]
        else:
            to, source = (t.expand(images, -1) for t in picked(pick, height, width, cell))
            unit_to, unit_source = take_rows(unit, to), take_rows(unit, source)
        score = cosines(unit_source, unit_to)
        order = score.amax(dim=2).argsort(dim=1, descending=True, stable=True)
        gone = order[:, :removed]
        partner = take_rows(score, gone).argmax(dim=2)  # argmax is slow, so it runs only for the tokens that leave
        stays = tokens - cells - removed
        number = (torch.arange(tokens - cells, device=x.device) - removed).expand_as(order)
        number = torch.empty_like(order).scatter_(1, order, number).scatter_(1, gone, partner + stays)
        own = torch.arange(stays, stays + cells, device=x.device).expand(images, -1)
        place = back.to(x.device).expand(images, -1) if pick is None else torch.cat([source, to], dim=1).argsort(dim=1)
        return Assignment.from_dense(torch.cat([number, own], dim=1).gather(1, place), tokens - removed)
