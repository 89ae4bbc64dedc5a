"""Cells of a coarser grid laid over the patch grid: whose cell a patch lies in, and which cells it may join.

Grids are ``(H, W)``, or ``(T, H, W)`` for the frames of a video; "rows and columns alike" then says frames as well, and
a square around a cell is a cube.

Everything here follows from (grid, clusters, window) alone. Each table is built once, cached by device, and shared: do
not write into it. One image's ids throughout; batches shift them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from tokengraph.errors import check_positive
from tokengraph.flat.tables import table

Sides = tuple[int, ...]  # (H, W) or (T, H, W)


def label_map(grid: Sides, clusters: Sides, *, device: torch.device | str = "cpu") -> Tensor:
    r"""Own cell of each patch: the cell grid enlarged to the patch grid by nearest neighbour.

    .. math:: \ell(y) = \min(\lfloor y \cdot (h / H) \rfloor,\; h - 1), \quad \text{each step rounded to float32}

    Rows and columns alike. ``(y * h) // H`` is another rule: they differ at single rows, for instance for 44 to 26.

    Returns:
        ``[N]`` int64 in ``[0, h*w)``, row-major as the patches are.

    Example:
        >>> label_map((1, 5), (1, 2)).tolist()
        [0, 0, 0, 1, 1]
    """
    return _labels(str(device), *check_cells(grid, clusters))


def cell_edges(
    grid: Sides, clusters: Sides, window: int, *, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """Connects each patch to the cells of a square of side ``window`` around its own, clipped at the border.

    Args:
        grid: ``(H, W)`` of the patches, or ``(T, H, W)``.
        clusters: ``(h, w)`` of the cells, or ``(t, h, w)``.
        window: Side of the square, or cube, in cells, odd.
        device: Where the tables go.

    Returns:
        ``token [E]`` and ``cluster [E]``, sorted by token, then cluster; and ``by_cluster [E]``, the places of the same
        edges sorted by cluster, then token. All int64.

    Raises:
        ValueError: If ``window`` is even or below 1, or a side below 1.

    Cost: ``O(E)``, at most ``window^2`` edges a patch, ``window^3`` in a video.
    """
    check_window(window)
    return _edges(str(device), window // 2, *check_cells(grid, clusters))


def pool_matrices(
    grid: Sides, clusters: Sides, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> tuple[Tensor, ...]:
    """Adaptive average pooling as a product along each axis, ``[h, H]`` and ``[w, W]``, in float32 or float64.

    Bin i holds places ``floor(i H / h)`` to ``ceil((i + 1) H / h) - 1``; bins overlap where h does not divide H.
    """
    return _pool(str(device), dtype == torch.float64, *check_cells(grid, clusters))


def pool_edges(grid: Sides, clusters: Sides, *, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """``token [E]`` and ``cluster [E]`` of the bins of :func:`pool_matrices`, sorted by token, then cluster."""
    return _pool_edges(str(device), *check_cells(grid, clusters))


class CellTiles(NamedTuple):
    """The edges of :func:`cell_edges` cut into T tiles of cells: P patches each, which share J candidate cells.

    The candidates of a tile are its own cells and a rim of ``window // 2`` around them. Products of whole tiles give
    every edge by matrix products, at a cost linear in the number of patches.
    """

    token: Tensor  # [T, P] patch ids; padding repeats the tile's first
    real: Tensor  # [T, P, 1] float32, 0 for padding
    candidate: Tensor  # [T, J] cell ids; padding repeats the tile's first
    barred: Tensor  # [T, P, J] float32: -inf where there is no edge, 0 elsewhere and all over rows of padding
    slot: Tensor  # [E] flat position in [T, P, J] of each edge
    source: Tensor  # [S] flat positions in [T, J] of real candidates, sorted by cell
    first: Tensor  # [h*w] where in ``source`` each cell begins


def cell_tiles(
    grid: Sides, clusters: Sides, window: int, *, side: int = 4, device: torch.device | str = "cpu"
) -> CellTiles:
    """Cuts ``cell_edges(grid, clusters, window)`` into tiles of about ``side`` cells along each axis."""
    check_window(window)
    sides = check_cells(grid, clusters)
    if len(sides) == 6 and sides[0] == sides[3] == 1:  # one frame is an image, to the bit
        sides = (*sides[1:3], *sides[4:])
    return _tiles(str(device), window // 2, side, *sides)


def tile_pairs(grid: Sides, clusters: Sides, window: int, *, side: int = 4, device: torch.device | str = "cpu") -> int:
    """Patch-cell pairs that :func:`cell_tiles` multiplies, padding included; read off its table on that device."""
    tiles, patches, cells = cell_tiles(grid, clusters, window, side=side, device=device).barred.shape
    return tiles * patches * cells


def check_window(window: int) -> None:
    """Raises unless ``window`` is odd and at least 1."""
    check_positive(window=window)
    if window % 2 == 0:
        raise ValueError(f"Expected an odd window (got window={window}). It is the side of a square around one cell.")


def check_cells(grid: Sides, clusters: Sides) -> tuple[int, ...]:
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
    """Cell of each place along one axis. In float32: it is the rounding that defines the rule."""
    step = torch.tensor(float(cells), dtype=torch.float32) / torch.tensor(float(size), dtype=torch.float32)
    return (torch.arange(size, dtype=torch.float32) * step).floor().long().clamp_max(cells - 1)


def _axes(sides: tuple[int, ...]) -> list[tuple[int, int]]:
    """Places and cells along each axis, out of the sides of the grid followed by those of the cells."""
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
    """``[size, cells]`` bool: within ``radius`` of the place's own cell along one axis."""
    return (_line(size, cells)[:, None] - torch.arange(cells)).abs() <= radius


def _cross(axes: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Patch and cell of each pair allowed along every axis, sorted by patch, then cell; never ``N x M``."""
    token = cluster = torch.zeros(1, dtype=torch.long)
    for allowed in axes:
        place, cell = allowed.nonzero().unbind(1)
        token = (token[:, None] * allowed.size(0) + place).flatten()
        cluster = (cluster[:, None] * allowed.size(1) + cell).flatten()
    order = (token * math.prod(a.size(1) for a in axes) + cluster).argsort()
    return token[order], cluster[order]


@table(64)
def _pool(device: str, double: int, *sides: int) -> tuple[Tensor, ...]:
    # One table for all axes: torch.compile tells constants apart by the function that made them.
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
    for _, cells in axes:  # the axis' part of an id: what remains over the axes after it
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
    """Ids of the grid ``[tiles, places]`` out of ids along each axis ``[bands, places]``; -1 stays."""
    ids, missing = torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1, dtype=torch.bool)

    def cross(a: Tensor, b: Tensor, of: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        return of(a[:, None, :, None], b[None, :, None, :]).reshape(a.size(0) * b.size(0), -1)

    for axis, size in zip(axes, sizes, strict=True):
        ids = cross(ids, axis, lambda a, b, size=size: a * size + b)
        missing = cross(missing, axis < 0, torch.logical_or)
    return ids.masked_fill(missing, -1)


def _bands(size: int, cells: int, radius: int, side: int) -> tuple[Tensor, Tensor]:
    """Cuts one axis into bands of at most ``side`` cells: places and candidate cells of each, padded with -1."""
    count = -(-cells // side)
    label, places, near = _line(size, cells), [], []
    for band in range(count):
        low, high = band * cells // count, (band + 1) * cells // count
        mine = ((label >= low) & (label < high)).nonzero().flatten()
        if mine.numel():  # with more cells than places a band may own none
            places.append(mine)
            near.append(torch.arange(max(0, low - radius), min(cells, high + radius)))
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(places, batch_first=True, padding_value=-1), pad(near, batch_first=True, padding_value=-1)
