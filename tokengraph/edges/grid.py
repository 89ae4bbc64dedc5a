"""The patch grid as a graph: each patch and the 4 or 8 around it."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.flat.tables import table


def grid_graph(
    grid: tuple[int, int], neighbors: int = 8, *, batch_size: int = 1, device: torch.device | str = "cpu"
) -> Tensor:
    """Connects each patch of an ``H x W`` grid to the patches that touch it.

    Args:
        grid: ``(H, W)``, any rectangle.
        neighbors: 4 (sides) or 8 (sides and corners); fewer at the border.
        batch_size: Images; their grids follow one another in flat ids.
        device: Where the edges go.

    Returns:
        ``edge_index [2, E]`` int64, both directions of every edge, sorted by target then source, no self loops.

    Raises:
        ValueError: If ``neighbors`` is not 4 or 8 or the grid is empty.

    Cost: ``O(H W)``, built once for each grid and device, then shared: do not write into it.

    Example:
        >>> grid_graph((1, 3), 4).tolist()
        [[1, 0, 2, 1], [0, 1, 1, 2]]
    """
    if neighbors not in (4, 8):
        raise ValueError(f"Expected neighbors to be 4 or 8 (got {neighbors}).")
    height, width = grid
    if height < 1 or width < 1:
        raise ValueError(f"Expected a grid of at least 1 x 1 (got {height} x {width}).")
    return _grid_graph(int(height), int(width), neighbors, batch_size, str(device))


@table(64)
def _grid_graph(height: int, width: int, neighbors: int, batch_size: int, device: str) -> Tensor:
    steps = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]
    if neighbors == 4:
        steps = [s for s in steps if 0 in s]
    step = torch.tensor(steps)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    near_y, near_x = y.reshape(-1, 1) + step[:, 0], x.reshape(-1, 1) + step[:, 1]
    inside = (near_y >= 0) & (near_y < height) & (near_x >= 0) & (near_x < width)
    target = torch.arange(height * width)[:, None].expand_as(inside)
    edges = torch.stack([(near_y * width + near_x)[inside], target[inside]])
    shift = torch.arange(batch_size)[:, None] * (height * width)
    return (edges[:, None, :] + shift).reshape(2, -1).to(device)


def grid_positions(grid: tuple[int, int], *, device: torch.device | str = "cpu") -> Tensor:
    """Centres of the patches in patch units, ``[H*W, 2]`` float32 as (y, x); patch (0, 0) lies at (0.5, 0.5)."""
    y = torch.arange(grid[0], device=device, dtype=torch.float32) + 0.5
    x = torch.arange(grid[1], device=device, dtype=torch.float32) + 0.5
    return torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).reshape(-1, 2)
