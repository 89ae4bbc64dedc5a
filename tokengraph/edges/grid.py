"""The patch grid as a graph: edges between patches that touch, in the plane or in space and time."""

from __future__ import annotations

import itertools
from collections.abc import Hashable

import torch
from torch import Tensor

from tokengraph.flat.tables import table
from tokengraph.kinds import explains

Grid = tuple[int, ...]  # (H, W), or (T, H, W) for a video
Grids = tuple[tuple[int, int], ...]  # (H, W) of each image in a batch

# For grids of 2 and 3 axes: the number of neighbours, and along how many axes at once a step to a neighbour may move.
NEIGHBORS = {2: {4: 1, 8: 2}, 3: {6: 1, 18: 2, 26: 3}}


@explains
def grid_graph(
    grid: Grid, neighbors: int | None = None, *, batch_size: int = 1, device: torch.device | str = "cpu"
) -> Tensor:
    """Connects each patch of an ``H x W`` or ``T x H x W`` grid to the patches that touch it.

    Args:
        grid: ``(H, W)``, any rectangle; ``(T, H, W)`` for a video. Do not pass a video as ``(T*H, W)``: that would
            connect the last row of a frame to the first row of the next.
        neighbors: For images 4 (sides) or 8 (sides and corners, the default); for videos 6 (faces), 18 (faces and
            edges) or 26 (faces, edges and corners, the default). Patches at the border have fewer.
        batch_size: Number of images, B; flat ids count through their grids one after another.
        device: Device of the edges.

    Returns:
        ``edge_index [2, E]`` int64, both directions of every edge, sorted by target then source, no self loops.

    Raises:
        ValueError: If ``neighbors`` is none of these or a side is below 1.
        TypeError: If the grid has neither two nor three sides.

    Cost: ``O(B N)`` for N patches per image; built once for each set of arguments, then shared: do not write into it.

    Example:
        >>> grid_graph((1, 3), 4).tolist()
        [[1, 0, 2, 1], [0, 1, 1, 2]]
    """
    sides = check_sides(grid)
    if batch_size < 0:
        raise ValueError(f"Expected batch_size >= 0 (got {batch_size}).")
    known = NEIGHBORS[len(sides)]
    if neighbors is not None and (not isinstance(neighbors, Hashable) or neighbors not in known):
        *most, last = known
        where = " in a video" if len(sides) == 3 else ""
        raise ValueError(f"Expected neighbors to be {', '.join(map(str, most))} or {last}{where} (got {neighbors}).")
    reach = len(sides) if neighbors is None else known[neighbors]
    return _grid_graph(reach, batch_size, str(device), *sides)


def check_sides(grid: Grid) -> tuple[int, ...]:
    """Returns ``(H, W)`` or ``(T, H, W)`` as ints; raises unless all sides are at least 1."""
    if not isinstance(grid, tuple | list) or len(grid) not in NEIGHBORS:
        raise TypeError(f"Expected grid as (H, W), or (T, H, W) for a video (got {grid!r}).")
    sides = tuple(int(side) for side in grid)
    if min(sides) < 1:
        least = " x ".join("1" * len(sides))
        raise ValueError(f"Expected a grid of at least {least} (got {' x '.join(map(str, sides))}).")
    return sides


@table(64)
def _grid_graph(reach: int, batch_size: int, device: str, *sides: int) -> Tensor:
    steps = torch.tensor(list(itertools.product((-1, 0, 1), repeat=len(sides))))  # by rising id
    moved = steps.abs().sum(dim=1)
    steps = steps[(moved > 0) & (moved <= reach)]
    place = torch.cartesian_prod(*map(torch.arange, sides))
    patches = place.size(0)
    source, inside = torch.zeros(1, dtype=torch.long), torch.ones(1, dtype=torch.bool)
    for axis, side in enumerate(sides):
        near = place[:, axis, None] + steps[:, axis]
        source, inside = source * side + near, inside & (near >= 0) & (near < side)
    target = torch.arange(patches)[:, None].expand_as(inside)
    edges = torch.stack([source[inside], target[inside]])
    shift = torch.arange(batch_size)[:, None] * patches
    return (edges[:, None, :] + shift).reshape(2, -1).to(device)


def grid_positions(grid: Grid, *, device: torch.device | str = "cpu") -> Tensor:
    """Returns the centres of the patches in patch units, ``[N, 2]`` float32 as (y, x).

    The centre of patch (0, 0) is (0.5, 0.5). A grid ``(T, H, W)`` gives ``[N, 3]`` as (t, y, x); one frame is one unit
    of time.

    Cost: ``O(N)``.
    """
    lines = [torch.arange(side, device=device, dtype=torch.float32) + 0.5 for side in grid]
    return torch.stack(torch.meshgrid(*lines, indexing="ij"), dim=-1).reshape(-1, len(lines))
