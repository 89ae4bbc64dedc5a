"""Cells of a video whose numbers were interpolated between cells, as the released 3-D code of Expedite has them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tokengraph.edges.cells import check_cells, check_window
from tokengraph.edges.grid import Grid
from tokengraph.flat.tables import table


def fractional_edges(
    grid: Grid, clusters: Grid, window: int, *, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    r"""As :func:`tokengraph.edges.cells.cell_edges`, around a cell number that was interpolated trilinearly.

    The numbers ``0 .. t*h*w - 1`` of the cells are enlarged to the patch grid as if they were an image. A patch gets a
    fraction f, and from it the place of its own cell

    .. math:: (\lfloor f / hw \rfloor,\; \lfloor (f \bmod hw) / w \rfloor,\; f \bmod w)

    whose last part stays a fraction. Its candidates are the cells within ``window // 2`` of that along each axis.

    Args:
        grid: ``(T, H, W)`` of the patches.
        clusters: ``(t, h, w)`` of the cells.
        window: Side of the cube, in cells, odd, at least 3: a fraction lies in no cube of side 1.
        device: Where the tables go.

    Returns:
        ``token [E]``, ``cluster [E]`` and ``by_cluster [E]`` as there.

    Raises:
        ValueError: If the grid is no video's, or ``window`` is even or below 3.

    Cost: ``O(N M)`` once for each set of sizes; at most ``window^3`` edges a patch.
    """
    check_window(window)
    sides = check_cells(grid, clusters)
    if len(sides) != 6:
        raise ValueError(
            f"Expected a grid (T, H, W) for label_map='trilinear' (got {tuple(grid)}). Images take 'nearest'."
        )
    if window < 3:
        raise ValueError(
            f"Expected window >= 3 with label_map='trilinear' (got window={window}). Cell numbers are fractions there."
        )
    return _edges(str(device), window // 2, *sides)


@table(16)
def _edges(device: str, radius: int, *sides: int) -> tuple[Tensor, Tensor, Tensor]:
    grid, cells = sides[:3], sides[3:]
    number = torch.arange(math.prod(cells), dtype=torch.float32)
    label = F.interpolate(number.view(1, 1, *cells), size=grid, mode="trilinear", align_corners=False).flatten()
    plane, width = cells[1] * cells[2], cells[2]
    own = ((label / plane).trunc(), (label % plane / width).trunc(), label % width)
    near = torch.ones(label.numel(), *cells, dtype=torch.bool)
    for axis, place in enumerate(own):
        shape = [-1 if i == axis else 1 for i in range(3)]
        apart = (place.view(-1, 1, 1, 1) - torch.arange(cells[axis]).view(1, *shape)).abs()
        near &= apart <= radius
    token, cluster = near.flatten(1).nonzero().unbind(1)
    return token.to(device), cluster.to(device), cluster.argsort(stable=True).to(device)
