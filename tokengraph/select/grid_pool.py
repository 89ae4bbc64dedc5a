"""Average pooling over grid cells, a control that reads no features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokengraph.cost import Cost
from tokengraph.errors import check_finite, check_mask
from tokengraph.kinds import explains
from tokengraph.maps.hard import Assignment
from tokengraph.select.base import Select
from tokengraph.select.parts.choices.cells import grid_cells, pack_cells
from tokengraph.select.tokens import Tokens, clamp_budget, valid_counts


@explains
def grid_pool(pos: Tensor, keep: int | list[int], grid: tuple[int, ...], *, mask: Tensor | None = None) -> Assignment:
    """Pools tokens into cells with equal counts: horizontal bands, each cut from left to right.

    A video is first cut into spans of time.

    Makes exactly ``keep`` cells for any ``keep``, grid and positions. If ``keep = h * w`` cells divide a full grid
    evenly, these are the cells of average pooling.

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
        if tokens.full and tokens.layer >= 0 and tokens.grid is not None and tokens.mask is None:
            keep = clamp_budget(budget, tokens.x, None)
            if isinstance(keep, int):  # inside a model the whole grid has its own positions, so cells are constant
                cells = grid_cells(keep, tokens.grid, tokens.x.device).expand(tokens.x.size(0), -1)
                return Assignment.from_dense(cells, keep, check=False)
        pos = tokens.pos
        assert tokens.grid is not None  # positions depend on it
        return _grid_pool(pos, budget, tokens.grid, tokens.mask)

    def cost(self, num_tokens: int, keep: int, channels: int, head_width: int = 64) -> Cost:
        """Two sorts of the positions."""
        return Cost(40 * num_tokens, 32 * num_tokens)


def _grid_pool(pos: Tensor, keep: int | list[int], grid: tuple[int, ...], mask: Tensor | None) -> Assignment:
    budget = clamp_budget(keep, pos, mask)
    if not isinstance(budget, list):
        return Assignment.from_dense(pack_cells(pos, budget, grid), budget)
    counts = valid_counts(pos, mask)
    cluster = torch.zeros(pos.shape[:2], dtype=torch.long, device=pos.device)
    for b, (count, cells) in enumerate(zip(counts, budget, strict=True)):
        if count:
            cluster[b, :count] = pack_cells(pos[b : b + 1, :count], cells, grid)[0]
    return Assignment.from_dense(cluster, budget, mask=mask)
