"""The window graph: edges from the lambda nearest patches on the grid to each patch."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from tokengraph.edges.grid import Grid, check_sides
from tokengraph.errors import check_positive
from tokengraph.flat.tables import table
from tokengraph.kinds import explains


@explains
def window_graph(grid: Grid, lam: int, *, device: torch.device | str = "cpu") -> Tensor:
    """Lists each patch's ``lam`` nearest patches on the grid, nearest first.

    The order is by (squared distance, index): column r - 1 holds the patch of rank r. The patch itself, of rank 0, is
    left out. Near borders the window reaches further inward, so that every patch has the same number of neighbours.

    Args:
        grid: ``(H, W)``, any rectangle; ``(T, H, W)`` for a video, in which one frame counts as far as one patch.
        lam: Neighbours per patch; clamped to ``N - 1``.
        device: Device of the table.

    Returns:
        ``[N, min(lam, N - 1)]`` int64 patch ids.

    Raises:
        TypeError: If the grid has neither two nor three sides.
        ValueError: If ``lam`` or a side is below 1.

    Cost: ``O(N lam)`` time and memory, built once for each (grid, lam, device), then shared: do not write into it.

    Example:
        >>> window_graph((1, 4), 2).tolist()
        [[1, 2], [0, 2], [1, 3], [2, 1]]

    Source: the neighbourhood of AiluRus (Li et al., NeurIPS 2023). Differs: its exact form is this
    project's own.
    """
    check_positive(lam=lam)
    sides = check_sides(grid)
    return _window(min(lam, math.prod(sides) - 1), str(device), *sides)


def window_edges(grid: Grid, lam: int, *, device: torch.device | str = "cpu") -> Tensor:
    """Returns :func:`window_graph` as edges ``[2, E]``, from the patches of a window to its own."""
    near = window_graph(grid, lam, device=device)
    target = torch.arange(near.size(0), device=near.device)[:, None].expand(near.shape)
    return torch.stack([near.flatten(), target.flatten()])


class Tiles(NamedTuple):
    """The window graph cut into tiles of patches that share one list of candidates.

    Each of T tiles has Q patches and J candidates. One matrix product for each tile computes all distances of the
    window graph, at a cost linear in the number of patches.
    """

    queries: Tensor  # [T, Q] patch ids; tiles that overlap the border repeat a patch
    candidates: Tensor  # [T, J] patch ids, the union of the tile's windows, padded with the first one
    local: Tensor  # [T, Q, L] position of each neighbour in the tile's candidates
    slot: Tensor  # [N] flat position in [T, Q] of each patch


def window_tiles(grid: Grid, lam: int, *, tile: int | None = None, device: torch.device | str = "cpu") -> Tiles:
    """Cuts ``window_graph(grid, lam)`` into tiles of ``tile`` patches along each axis; built once and cached.

    By default 8 x 8, and 4 x 4 x 4 in a video.
    """
    sides = check_sides(grid)
    if len(sides) == 3 and sides[0] == 1:  # one frame gives bit-identical results to an image
        sides = sides[1:]
    tile = (8 if len(sides) == 2 else 4) if tile is None else tile
    return _tiles(min(lam, math.prod(sides) - 1), tile, str(device), *sides)


def reach(grid: Grid, lam: int) -> int:
    """Returns the smallest integer radius that covers ``lam`` other patches around a corner, the patch with fewest."""
    *outer, width = grid
    radius = max(math.isqrt(lam), 1) if len(grid) == 2 else 1
    while radius * radius < sum((side - 1) ** 2 for side in grid):
        inside = 0
        for steps in itertools.product(*(range(min(side, radius + 1)) for side in outer)):
            left = radius * radius - sum(step * step for step in steps)
            inside += min(width, math.isqrt(left) + 1) if left >= 0 else 0
        if inside > lam:
            break
        radius += 1
    return radius


@table(64)
def _window(lam: int, device: str, *sides: int) -> Tensor:
    patches = math.prod(sides)
    if lam == 0:
        return torch.empty(patches, 0, dtype=torch.long, device=device)
    radius = reach(sides, lam)
    lines = [torch.arange(-min(radius, side - 1), min(radius, side - 1) + 1) for side in sides]
    step = torch.cartesian_prod(*lines)
    distance = step.square().sum(dim=1)
    # Among equal distances, a lower index means a smaller step around every patch, so one order serves all patches.
    order = distance.argsort(stable=True)
    order = order[(distance[order] > 0) & (distance[order] <= radius * radius)]
    step = step[order]
    chunks = []
    for place in torch.cartesian_prod(*map(torch.arange, sides)).split(4096):
        ids, inside = torch.zeros(1, dtype=torch.long), torch.ones(1, dtype=torch.bool)
        for axis, side in enumerate(sides):
            near = place[:, axis, None] + step[:, axis]
            ids, inside = ids * side + near, inside & (near >= 0) & (near < side)
        inside &= inside.cumsum(dim=1) <= lam
        chunks.append(ids[inside].view(-1, lam))
    return torch.cat(chunks).to(device)


@table(32)
def _tiles(lam: int, tile: int, device: str, *sides: int) -> Tiles:
    window = _window(lam, "cpu", *sides)
    queries, slot = torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 2, dtype=torch.long)
    for side in sides:  # adds one axis to the ids of tiles and of places in them
        long = tile if len(sides) == 2 else min(tile, side)  # a video may have fewer frames than a tile
        count = -(-side // long)
        line = torch.arange(count * long).clamp_max(side - 1).view(1, count, 1, long)
        queries = (queries[:, None, :, None] * side + line).reshape(queries.size(0) * count, -1)
        place = torch.arange(side)
        step = torch.stack([place // long, place % long], dim=1)
        slot = (slot[:, None] * torch.tensor([count, long]) + step).reshape(-1, 2)
    slot = slot[:, 0] * queries.size(1) + slot[:, 1]
    seen = [torch.unique(torch.cat([q, window[q].flatten()])) for q in queries]
    most = max(s.numel() for s in seen)
    candidates = torch.stack([torch.cat([s, s[:1].expand(most - s.numel())]) for s in seen])
    local = torch.stack([torch.searchsorted(s, window[q]) for s, q in zip(seen, queries, strict=True)])
    return Tiles(queries.to(device), candidates.to(device), local.to(device), slot.to(device))
