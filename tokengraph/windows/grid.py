"""Cuts maps into windows and joins them again; the windows of all images form one batch."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tokengraph.flat.tables import table

Pair = tuple[int, int]


class Cut(NamedTuple):
    """How a map was cut: what :func:`stitch` needs to undo :func:`split`."""

    images: int
    grid: Pair  # (H, W) of the map, without padding
    window: Pair  # (a, b), tokens of a window
    cells: Pair  # windows along each axis

    @property
    def padded(self) -> bool:
        """True if the windows reach beyond the map."""
        return (self.cells[0] * self.window[0], self.cells[1] * self.window[1]) != self.grid


def split(x: Tensor, window: Pair, *, value: float = 0.0) -> tuple[Tensor, Cut]:
    """Cuts maps into windows, padding at the bottom and on the right.

    Args:
        x: ``[B, H, W, C]``.
        window: ``(a, b)``.
        value: Value of the padding.

    Returns:
        ``[B*n*m, a*b, C]``, the windows of an image in row-major order, and how they were cut.

    Cost: one copy.
    """
    cut = cut_of(x, window)
    (a, b), (n, m) = cut.window, cut.cells
    images, height, width, channels = x.shape
    x = F.pad(x, (0, 0, 0, m * b - width, 0, n * a - height), value=value)
    x = x.reshape(images, n, a, m, b, channels).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(images * n * m, a * b, channels), cut


def cut_of(x: Tensor, window: Pair) -> Cut:
    """How :func:`split` cuts maps ``[B, H, W, C]``."""
    images, height, width = x.shape[:3]
    return Cut(images, (height, width), window, (-(-height // window[0]), -(-width // window[1])))


def stitch(windows: Tensor, cut: Cut, *, window: Pair | None = None, crop: bool = True) -> Tensor:
    """Joins windows to maps; the inverse of :func:`split`.

    Args:
        windows: ``[B*n*m, a*b, C]``.
        cut: How they were cut.
        window: Size of these windows, if it differs from the cut's; the map then has another size and is not cropped.
        crop: Take the padding off.

    Returns:
        ``[B, H, W, C]``; ``[B, n*a, m*b, C]`` without cropping.
    """
    a, b = window or cut.window
    n, m = cut.cells
    x = windows.reshape(cut.images, n, m, a, b, windows.size(2)).permute(0, 1, 3, 2, 4, 5)
    x = x.reshape(cut.images, n * a, m * b, windows.size(2))
    return x[:, : cut.grid[0], : cut.grid[1]].contiguous() if crop and window is None and cut.padded else x


def real(cut: Cut, device: torch.device | str) -> Tensor | None:
    """Mask of window tokens that are not padding, ``[B*n*m, a*b]`` bool; ``None``: no padding."""
    if not cut.padded:
        return None
    return _real(*cut.grid, *cut.window, str(device)).repeat(cut.images, 1)


@table(64)
def _real(height: int, width: int, a: int, b: int, device: str) -> Tensor:
    """``[n*m, a*b]`` of one image."""
    inside = torch.ones(1, height, width, 1, dtype=torch.float32, device=device)
    return split(inside, (a, b))[0][..., 0] > 0


def area(window: Pair) -> int:
    """Tokens of a window."""
    return math.prod(window)
