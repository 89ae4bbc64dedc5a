"""Cells of a coarser grid laid over the patch grid: whose cell a patch lies in, and which cells it may join.

Everything here follows from (grid, clusters, window) alone. Each table is built once, cached by device, and shared: do
not write into it. One image's ids throughout; batches shift them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tokengraph.errors import check_positive
from tokengraph.flat.tables import table

Pair = tuple[int, int]


def label_map(grid: Pair, clusters: Pair, *, device: torch.device | str = "cpu") -> Tensor:
    r"""Own cell of each patch: the cell grid enlarged to the patch grid by nearest neighbour.

    .. math:: \ell(y) = \min(\lfloor y \cdot (h / H) \rfloor,\; h - 1), \quad \text{each step rounded to float32}

    Rows and columns alike. ``(y * h) // H`` is another rule: they differ at single rows, for instance for 44 to 26.

    Returns:
        ``[H*W]`` int64 in ``[0, h*w)``, row-major as the patches are.

    Example:
        >>> label_map((1, 5), (1, 2)).tolist()
        [0, 0, 0, 1, 1]
    """
    return _labels(*check_cells(grid, clusters), str(device))


def cell_edges(
    grid: Pair, clusters: Pair, window: int, *, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """Connects each patch to the cells of a square of side ``window`` around its own, clipped at the border.

    Args:
        grid: ``(H, W)`` of the patches.
        clusters: ``(h, w)`` of the cells.
        window: Side of the square in cells, odd.
        device: Where the tables go.

    Returns:
        ``token [E]`` and ``cluster [E]``, sorted by token, then cluster; and ``by_cluster [E]``, the places of the same
        edges sorted by cluster, then token. All int64.

    Raises:
        ValueError: If ``window`` is even or below 1, or a side below 1.

    Cost: ``O(E)``, at most ``window^2`` edges a patch.
    """
    check_window(window)
    return _edges(*check_cells(grid, clusters), window // 2, str(device))


class PoolMatrices(NamedTuple):
    """Adaptive average pooling as two products."""

    rows: Tensor  # [h, H]
    columns: Tensor  # [w, W]


def pool_matrices(
    grid: Pair, clusters: Pair, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> PoolMatrices:
    """Adaptive average pooling as a product along each axis, in float32 or float64.

    Bin i holds places ``floor(i H / h)`` to ``ceil((i + 1) H / h) - 1``; bins overlap where h does not divide H.
    """
    return _pool(*check_cells(grid, clusters), dtype == torch.float64, str(device))


def pool_edges(grid: Pair, clusters: Pair, *, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """``token [E]`` and ``cluster [E]`` of the bins of :func:`pool_matrices`, sorted by token, then cluster."""
    return _pool_edges(*check_cells(grid, clusters), str(device))


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
    grid: Pair, clusters: Pair, window: int, *, side: int = 4, device: torch.device | str = "cpu"
) -> CellTiles:
    """Cuts ``cell_edges(grid, clusters, window)`` into tiles of about ``side x side`` cells."""
    check_window(window)
    return _tiles(*check_cells(grid, clusters), window // 2, side, str(device))


def tile_pairs(grid: Pair, clusters: Pair, window: int, *, side: int = 4, device: torch.device | str = "cpu") -> int:
    """Patch-cell pairs that :func:`cell_tiles` multiplies, padding included; read off its table on that device."""
    tiles, patches, cells = cell_tiles(grid, clusters, window, side=side, device=device).barred.shape
    return tiles * patches * cells


def check_window(window: int) -> None:
    """Raises unless ``window`` is odd and at least 1."""
    check_positive(window=window)
    if window % 2 == 0:
        raise ValueError(f"Expected an odd window (got window={window}). It is the side of a square around one cell.")


def check_cells(grid: Pair, clusters: Pair) -> tuple[int, int, int, int]:
    """Returns ``(H, W, h, w)`` as ints; raises unless these are two pairs of sides of at least 1."""
    for name, pair in (("grid", grid), ("clusters", clusters)):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise TypeError(f"Expected {name} as two ints, rows and columns (got {pair!r}).")
    sides = {"H": grid[0], "W": grid[1], "h": clusters[0], "w": clusters[1]}
    check_positive(**sides)
    return tuple(int(s) for s in sides.values())  # type: ignore[return-value]


def _line(size: int, cells: int) -> Tensor:
    """Cell of each place along one axis. In float32: it is the rounding that defines the rule."""
    step = torch.tensor(float(cells), dtype=torch.float32) / torch.tensor(float(size), dtype=torch.float32)
    return (torch.arange(size, dtype=torch.float32) * step).floor().long().clamp_max(cells - 1)


@table(64)
def _labels(height: int, width: int, h: int, w: int, device: str) -> Tensor:
    return (_line(height, h)[:, None] * w + _line(width, w)).flatten().to(device)


@table(64)
def _edges(height: int, width: int, h: int, w: int, radius: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    token, cluster = _cross(_near(height, h, radius), _near(width, w, radius))
    return token.to(device), cluster.to(device), cluster.argsort(stable=True).to(device)


def _near(size: int, cells: int, radius: int) -> Tensor:
    """``[size, cells]`` bool: within ``radius`` of the place's own cell along one axis."""
    return (_line(size, cells)[:, None] - torch.arange(cells)).abs() <= radius


def _cross(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Patch and cell of each pair allowed along both axes, sorted by patch, then cell; never ``N x M``."""
    (y, i), (x, j) = rows.nonzero().unbind(1), columns.nonzero().unbind(1)
    token = (y[:, None] * columns.size(0) + x).flatten()
    cluster = (i[:, None] * columns.size(1) + j).flatten()
    order = (token * (rows.size(1) * columns.size(1)) + cluster).argsort()
    return token[order], cluster[order]


@table(64)
def _pool(height: int, width: int, h: int, w: int, double: int, device: str) -> PoolMatrices:
    # One table for both axes: torch.compile tells constants apart by the function that made them.
    inside = [_bins(*axis).to(torch.float64 if double else torch.float32) for axis in ((height, h), (width, w))]
    return PoolMatrices(*((m / m.sum(dim=1, keepdim=True)).to(device) for m in inside))


@table(64)
def _pool_edges(height: int, width: int, h: int, w: int, device: str) -> tuple[Tensor, Tensor]:
    token, cluster = _cross(_bins(height, h).T, _bins(width, w).T)
    return token.to(device), cluster.to(device)


def _bins(size: int, cells: int) -> Tensor:
    cell, place = torch.arange(cells)[:, None], torch.arange(size)
    return (place >= cell * size // cells) & (place < -(-(cell + 1) * size // cells))


@table(32)
def _tiles(height: int, width: int, h: int, w: int, radius: int, side: int, device: str) -> CellTiles:
    (y, i), (x, j) = _bands(height, h, radius, side), _bands(width, w, radius, side)

    def cross(a: Tensor, b: Tensor, factor: int) -> Tensor:  # ids of rows and columns to ids of the grid, -1 stays
        ids = a[:, None, :, None] * factor + b[None, :, None, :]
        ids = torch.where((a < 0)[:, None, :, None] | (b < 0)[None, :, None, :], -1, ids)
        return ids.reshape(a.size(0) * b.size(0), -1)

    token, candidate = cross(y, x, width), cross(i, j, w)
    label = _labels(height, width, h, w, "cpu")[token]
    apart = torch.maximum(
        (label[:, :, None] // w - candidate[:, None] // w).abs(), (label[:, :, None] % w - candidate[:, None] % w).abs()
    )
    edge = (apart <= radius) & (token >= 0)[:, :, None] & (candidate >= 0)[:, None]
    tile, patch, cell = edge.nonzero().unbind(1)
    order = (token[tile, patch] * (h * w) + candidate[tile, cell]).argsort()
    slot = ((tile * edge.size(1) + patch) * edge.size(2) + cell)[order]
    barred = torch.zeros(edge.shape, dtype=torch.float32).masked_fill(~edge & (token >= 0)[:, :, None], -torch.inf)
    source = candidate.flatten().argsort(stable=True)[int((candidate < 0).sum()) :]
    first = torch.searchsorted(candidate.flatten()[source], torch.arange(h * w))
    real = (token >= 0).float()[:, :, None]
    found = token.where(token >= 0, token[:, :1]), candidate.where(candidate >= 0, candidate[:, :1])
    return CellTiles(*(t.to(device) for t in (found[0], real, found[1], barred, slot, source, first)))


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
