"""The window graph: each patch and its lambda nearest patches, by rank of grid distance."""

from __future__ import annotations

from math import isqrt
from typing import NamedTuple

import torch
from torch import Tensor

from tokengraph.errors import check_positive
from tokengraph.flat.tables import table


def window_graph(grid: tuple[int, int], lam: int, *, device: torch.device | str = "cpu") -> Tensor:
    """Lists each patch's ``lam`` nearest patches on the grid, nearest first.

    Order is by (squared distance, index), so column r - 1 holds the patch of rank r; the patch itself has rank 0 and is
    left out. At borders the window reaches further in, so that every patch has the same number of neighbours.

    Args:
        grid: ``(H, W)``, any rectangle.
        lam: Neighbours a patch; clamped to ``H*W - 1``.
        device: Where the table goes.

    Returns:
        ``[H*W, min(lam, H*W - 1)]`` int64 patch ids.

    Cost: ``O(H W lam)`` time and memory, built once for each (grid, lam, device), then shared: do not write into it.

    Example:
        >>> window_graph((1, 4), 2).tolist()
        [[1, 2], [0, 2], [1, 3], [2, 1]]

    Source: the neighbourhood of AiluRus (Li et al., NeurIPS 2023); its exact form here is our own choice.
    """
    check_positive(lam=lam)
    height, width = int(grid[0]), int(grid[1])
    if height < 1 or width < 1:
        raise ValueError(f"Expected a grid of at least 1 x 1 (got {height} x {width}).")
    return _window(height, width, min(lam, height * width - 1), str(device))


class Tiles(NamedTuple):
    """The window graph cut into tiles of patches that share one list of candidates.

    T tiles of Q patches see J candidates each. Products of whole tiles with their candidates give every distance of
    the window graph by matrix products, at a cost linear in the number of patches.
    """

    queries: Tensor  # [T, Q] patch ids; tiles over the rim repeat a patch
    candidates: Tensor  # [T, J] patch ids, the union of the tile's windows, padded with its first
    local: Tensor  # [T, Q, L] where in the tile's candidates each neighbour is
    slot: Tensor  # [H*W] flat position in [T, Q] of each patch


def window_tiles(grid: tuple[int, int], lam: int, *, tile: int = 8, device: torch.device | str = "cpu") -> Tiles:
    """Cuts ``window_graph(grid, lam)`` into ``tile x tile`` patches with their candidates; built once and cached."""
    height, width = int(grid[0]), int(grid[1])
    return _tiles(height, width, min(lam, height * width - 1), tile, str(device))


def reach(grid: tuple[int, int], lam: int) -> int:
    """The smallest whole radius around a corner that holds ``lam`` other patches; elsewhere it holds more."""
    height, width = grid
    radius = max(isqrt(lam), 1)
    while radius * radius < (height - 1) ** 2 + (width - 1) ** 2:
        rows = range(min(height, radius + 1))
        inside = sum(min(width, isqrt(radius * radius - dy * dy) + 1) for dy in rows)
        if inside > lam:
            break
        radius += 1
    return radius


@table(64)
def _window(height: int, width: int, lam: int, device: str) -> Tensor:
    if lam == 0:
        return torch.empty(height * width, 0, dtype=torch.long, device=device)
    radius = reach((height, width), lam)
    dy = torch.arange(-min(radius, height - 1), min(radius, height - 1) + 1)
    dx = torch.arange(-min(radius, width - 1), min(radius, width - 1) + 1)
    step = torch.stack(torch.meshgrid(dy, dx, indexing="ij"), dim=-1).reshape(-1, 2)
    distance = step.square().sum(dim=1)
    # Among equal distances a lower index is a smaller (dy, dx), whatever the centre: one order serves all patches.
    order = distance.argsort(stable=True)
    order = order[(distance[order] > 0) & (distance[order] <= radius * radius)]
    step = step[order]
    chunks = []
    for ids in torch.arange(height * width).split(4096):
        y, x = ids[:, None] // width + step[:, 0], ids[:, None] % width + step[:, 1]
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        inside &= inside.cumsum(dim=1) <= lam
        chunks.append((y * width + x)[inside].view(-1, lam))
    return torch.cat(chunks).to(device)


@table(32)
def _tiles(height: int, width: int, lam: int, tile: int, device: str) -> Tiles:
    window = _window(height, width, lam, "cpu")
    rows, columns = -(-height // tile), -(-width // tile)
    y = (torch.arange(rows * tile)).clamp_max(height - 1).view(rows, 1, tile, 1)
    x = (torch.arange(columns * tile)).clamp_max(width - 1).view(1, columns, 1, tile)
    queries = (y * width + x).reshape(rows * columns, -1)
    seen = [torch.unique(torch.cat([q, window[q].flatten()])) for q in queries]
    most = max(s.numel() for s in seen)
    candidates = torch.stack([torch.cat([s, s[:1].expand(most - s.numel())]) for s in seen])
    local = torch.stack([torch.searchsorted(s, window[q]) for s, q in zip(seen, queries, strict=True)])
    patch = torch.arange(height * width)
    py, px = patch // width, patch % width
    slot = ((py // tile) * columns + px // tile) * (tile * tile) + (py % tile) * tile + px % tile
    return Tiles(queries.to(device), candidates.to(device), local.to(device), slot.to(device))
