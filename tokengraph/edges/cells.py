"""Cells of a coarser grid over the patch grid: the cell in which each patch lies, and the cells that it may join.

Grids are ``(H, W)``, or ``(T, H, W)`` for the frames of a video; a square around a cell is then a cube.

All tables depend on (grid, clusters, window) alone. Each is built once for each device, cached and shared: do not write
into it. Ids are those of one image; a batch adds offsets.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from tokengraph.edges.grid import Grid
from tokengraph.errors import check_positive
from tokengraph.flat.tables import table


def label_map(grid: Grid, clusters: Grid, *, device: torch.device | str = "cpu") -> Tensor:
    r"""Gives each patch the cell that contains it: enlarges the cell grid to the patch grid by nearest neighbour.

    .. math:: \ell(y) = \min(\lfloor y \cdot (h / H) \rfloor,\; h - 1), \quad \text{each step rounded to float32}

    The same rule holds for columns (and frames). ``(y * h) // H`` is another rule: the two differ at single rows, for
    instance for 44 to 26.

    Args:
        grid: ``(H, W)`` of the patches, or ``(T, H, W)``.
        clusters: ``(h, w)`` of the cells, or ``(t, h, w)``.
        device: Device of the table.

    Returns:
        ``[N]`` int64 in ``[0, h*w)``, row-major as the patches are.

    Raises:
        TypeError: If a grid has neither two nor three sides.
        ValueError: If the two grids differ in their number of sides, or a side is below 1.

    Cost: ``O(N)``, built once.

    Example:
        >>> label_map((1, 5), (1, 2)).tolist()
        [0, 0, 0, 1, 1]
    """
    return _labels(str(device), *check_cells(grid, clusters))


def cell_edges(
    grid: Grid, clusters: Grid, window: int, *, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """Connects each patch to the cells of a square of side ``window`` around its own, clipped at the border.

    Args:
        grid: ``(H, W)`` of the patches, or ``(T, H, W)``.
        clusters: ``(h, w)`` of the cells, or ``(t, h, w)``.
        window: Side of the square, or cube, in cells, odd.
        device: Device of the tables.

    Returns:
        ``token [E]`` and ``cluster [E]``, sorted by token, then cluster; and ``by_cluster [E]``, the permutation that
        sorts these edges by cluster, then token. All int64.

    Raises:
        ValueError: If ``window`` is even or below 1, or a side below 1.

    Cost: ``O(E)``, at most ``window^2`` edges per patch, ``window^3`` in a video.
    """
    check_window(window)
    return _edges(str(device), window // 2, *check_cells(grid, clusters))


def pool_matrices(
    grid: Grid, clusters: Grid, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> tuple[Tensor, ...]:
    """Returns one matrix for each axis, ``[h, H]`` and ``[w, W]``; their products do adaptive average pooling.

    Bin i averages places ``floor(i H / h)`` to ``ceil((i + 1) H / h) - 1``; bins overlap if h does not divide H. The
    matrices are float64 if ``dtype`` is, else float32. Raises as :func:`label_map`.
    """
    return _pool(str(device), dtype == torch.float64, *check_cells(grid, clusters))


def pool_edges(grid: Grid, clusters: Grid, *, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Returns ``token [E]`` and ``cluster [E]`` int64 of the bins of :func:`pool_matrices`, sorted in this order."""
    return _pool_edges(str(device), *check_cells(grid, clusters))


class CellTiles(NamedTuple):
    """The edges of :func:`cell_edges` cut into T tiles; the P patches of a tile share J candidate cells.

    The candidates of a tile are its own cells and a margin of ``window // 2`` cells around them. One matrix product for
    each tile then computes all edges, at a cost linear in the number of patches.
    """

    token: Tensor  # [T, P] patch ids; padding repeats the tile's first
    real: Tensor  # [T, P, 1] float32, 0 for padding
    candidate: Tensor  # [T, J] cell ids; padding repeats the tile's first
    barred: Tensor  # [T, P, J] float32: -inf where there is no edge, 0 at edges and in all rows of padding
    slot: Tensor  # [E] flat position in [T, P, J] of each edge
    source: Tensor  # [S] flat positions in [T, J] of real candidates, sorted by cell
    first: Tensor  # [h*w] position in ``source`` at which each cell begins


def cell_tiles(
    grid: Grid, clusters: Grid, window: int, *, side: int = 4, device: torch.device | str = "cpu"
) -> CellTiles:
    """Cuts ``cell_edges(grid, clusters, window)`` into tiles of about ``side`` cells along each axis."""
    check_window(window)
    sides = check_cells(grid, clusters)
    if len(sides) == 6 and sides[0] == sides[3] == 1:  # one frame gives bit-identical results to an image
        sides = (*sides[1:3], *sides[4:])
    return _tiles(str(device), window // 2, side, *sides)


def tile_pairs(grid: Grid, clusters: Grid, window: int, *, side: int = 4, device: torch.device | str = "cpu") -> int:
    """Counts the patch-cell pairs that :func:`cell_tiles` multiplies, padding included; builds its table if needed."""
    tiles, patches, cells = cell_tiles(grid, clusters, window, side=side, device=device).barred.shape
    return tiles * patches * cells


def check_window(window: int) -> None:
    """Raises unless ``window`` is odd and at least 1."""
    check_positive(window=window)
    if window % 2 == 0:
        raise ValueError(f"Expected an odd window (got window={window}). It is the side of a square around one cell.")


def check_cells(grid: Grid, clusters: Grid) -> tuple[int, ...]:
    """Returns ``(H, W, h, w)`` or ``(T, H, W, t, h, w)`` as ints; raises unless all sides are at least 1."""
    for name, pair in (("grid", grid), ("clusters", clusters)):
        if not isinstance(pair, tuple | list) or len(pair) not in (2, 3):
            raise TypeError(f"Expected {name} as two ints, rows and columns, or three with frames (got {pair!r}).")
    if len(grid) != len(clusters):
        raise ValueError(
            f"Expected as many sides in clusters as in the grid (got clusters={tuple(clusters)}, grid={tuple(grid)}). "
            "Each axis has its own: (t, h, w) for (T, H, W)."
        )
    names = ("H", "W", "h", "w") if len(grid) == 2 else ("T", "H", "W", "t", "h", "w")
    check_positive(**dict(zip(names, (*grid, *clusters), strict=True)))
    return tuple(int(s) for s in (*grid, *clusters))


def _line(size: int, cells: int) -> Tensor:
    """Returns the cell of each place along one axis. It must run in float32: the rule includes its rounding."""
    step = torch.tensor(float(cells), dtype=torch.float32) / torch.tensor(float(size), dtype=torch.float32)
    return (torch.arange(size, dtype=torch.float32) * step).floor().long().clamp_max(cells - 1)


def _axes(sides: tuple[int, ...]) -> list[tuple[int, int]]:
    """Pairs the number of places and of cells along each axis; ``sides`` lists the grid's first, then the cells'."""
    half = len(sides) // 2
    return list(zip(sides[:half], sides[half:], strict=True))


@table(64)
def _labels(device: str, *sides: int) -> Tensor:
    def cross(label: Tensor, axis: tuple[int, int]) -> Tensor:
        return (label[:, None] * axis[1] + _line(*axis)).flatten()

    return reduce(cross, _axes(sides), torch.zeros(1, dtype=torch.long)).to(device)


@table(64)
def _edges(device: str, radius: int, *sides: int) -> tuple[Tensor, Tensor, Tensor]:
    token, cluster = _cross([_near(*axis, radius) for axis in _axes(sides)])
    return token.to(device), cluster.to(device), cluster.argsort(stable=True).to(device)


def _near(size: int, cells: int, radius: int) -> Tensor:
    """Returns ``[size, cells]`` bool: True if a cell is within ``radius`` of a place's own cell along one axis."""
    return (_line(size, cells)[:, None] - torch.arange(cells)).abs() <= radius


def _cross(axes: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Returns patch and cell of each pair that every axis allows, sorted in this order, without an ``N x K`` mask."""
    token = cluster = torch.zeros(1, dtype=torch.long)
    for allowed in axes:
        place, cell = allowed.nonzero().unbind(1)
        token = (token[:, None] * allowed.size(0) + place).flatten()
        cluster = (cluster[:, None] * allowed.size(1) + cell).flatten()
    order = (token * math.prod(a.size(1) for a in axes) + cluster).argsort()
    return token[order], cluster[order]


@table(64)
def _pool(device: str, double: int, *sides: int) -> tuple[Tensor, ...]:
    # One table for all axes: torch.compile tells constants apart by the function that returned them.
    inside = [_bins(*axis).to(torch.float64 if double else torch.float32) for axis in _axes(sides)]
    return tuple((m / m.sum(dim=1, keepdim=True)).to(device) for m in inside)


@table(64)
def _pool_edges(device: str, *sides: int) -> tuple[Tensor, Tensor]:
    token, cluster = _cross([_bins(*axis).T for axis in _axes(sides)])
    return token.to(device), cluster.to(device)


def _bins(size: int, cells: int) -> Tensor:
    cell, place = torch.arange(cells)[:, None], torch.arange(size)
    return (place >= cell * size // cells) & (place < -(-(cell + 1) * size // cells))


@table(32)
def _tiles(device: str, radius: int, side: int, *sides: int) -> CellTiles:
    axes = _axes(sides)
    bands = [_bands(*axis, radius, side) for axis in axes]
    token = _grid_ids([places for places, _ in bands], [size for size, _ in axes])
    candidate = _grid_ids([near for _, near in bands], [cells for _, cells in axes])
    count = math.prod(cells for _, cells in axes)
    label, apart, below = _labels("cpu", *sides)[token], None, count
    for _, cells in axes:  # the stride of an axis is the number of cells below it
        below //= cells
        own, other = label // below % cells, candidate // below % cells
        far = (own[:, :, None] - other[:, None]).abs()
        apart = far if apart is None else torch.maximum(apart, far)
    assert apart is not None
    edge = (apart <= radius) & (token >= 0)[:, :, None] & (candidate >= 0)[:, None]
    tile, patch, cell = edge.nonzero().unbind(1)
    order = (token[tile, patch] * count + candidate[tile, cell]).argsort()
    slot = ((tile * edge.size(1) + patch) * edge.size(2) + cell)[order]
    barred = torch.zeros(edge.shape, dtype=torch.float32).masked_fill(~edge & (token >= 0)[:, :, None], -torch.inf)
    source = candidate.flatten().argsort(stable=True)[int((candidate < 0).sum()) :]
    first = torch.searchsorted(candidate.flatten()[source], torch.arange(count))
    real = (token >= 0).float()[:, :, None]
    found = token.where(token >= 0, token[:, :1]), candidate.where(candidate >= 0, candidate[:, :1])
    return CellTiles(*(t.to(device) for t in (found[0], real, found[1], barred, slot, source, first)))


def _grid_ids(axes: list[Tensor], sizes: list[int]) -> Tensor:
    """Combines ids along each axis ``[bands, places]`` to ids of the grid ``[tiles, places]``; -1 stays -1."""
    ids, missing = torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1, dtype=torch.bool)

    def cross(a: Tensor, b: Tensor, of: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        return of(a[:, None, :, None], b[None, :, None, :]).reshape(a.size(0) * b.size(0), -1)

    for axis, size in zip(axes, sizes, strict=True):
        ids = cross(ids, axis, lambda a, b, size=size: a * size + b)
        missing = cross(missing, axis < 0, torch.logical_or)
    return ids.masked_fill(missing, -1)


def _bands(size: int, cells: int, radius: int, side: int) -> tuple[Tensor, Tensor]:
    """Cuts one axis into bands of at most ``side`` cells; returns each band's places and candidates, padded with -1."""
    count = -(-cells // side)
    label, places, near = _line(size, cells), [], []
    for band in range(count):
        low, high = band * cells // count, (band + 1) * cells // count
        mine = ((label >= low) & (label < high)).nonzero().flatten()
        if mine.numel():  # if there are more cells than places, a band may have no place
            places.append(mine)
            near.append(torch.arange(max(0, low - radius), min(cells, high + radius)))
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(places, batch_first=True, padding_value=-1), pad(near, batch_first=True, padding_value=-1)
