"""Position embeddings for any grid."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from tokengraph.errors import check_grid


def interpolate_positions(table: Tensor, source: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Resamples a position embedding from one grid to another, as the official code does when it loads a checkpoint.

    It is bicubic, with scale factors ``(H + 0.1) / H_source`` and likewise for columns. The 0.1 shifts the sampling
    points a little, so the result differs from resampling to a target size.

    Args:
        table: ``[1, N, C]`` in raster order.
        source: Grid of the table.
        grid: The target grid. If it equals ``source``, the table itself is returned.

    Returns:
        ``[1, H*W, C]``, in the dtype of ``table``.

    Raises:
        ValueError: If ``source`` does not hold N patches, or a side of ``grid`` is below 1.

    Cost: one interpolation of ``[1, C, H, W]``; nothing if the grids are equal.

    Source: the official code of Tian et al., *Fast-iTPN*, TPAMI 2024. Differs: the source grid may be any rectangle.
    """
    height, width = check_grid(source, table.size(1))
    if (height, width) == tuple(grid):
        return table
    if min(grid) < 1:
        raise ValueError(f"Expected a grid of at least 1 x 1 (got {grid[0]} x {grid[1]}).")
    maps = table.float() if table.dtype.itemsize < 4 else table
    maps = maps.view(1, height, width, -1).permute(0, 3, 1, 2)
    factors = ((grid[0] + 0.1) / height, (grid[1] + 0.1) / width)
    maps = F.interpolate(maps, scale_factor=factors, mode="bicubic", align_corners=False)
    return maps.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)
