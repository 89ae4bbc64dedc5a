"""How much the tokens of a small window of the grid resemble each other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tokengraph.flat.segment import as_type
from tokengraph.flat.tables import table


def window_members(grid: tuple[int, ...], window: tuple[int, ...], device: torch.device) -> Tensor:
    """Patches of each whole window, ``[W, k]`` int64; windows lie side by side, from the first corner on.

    Args:
        grid: ``(H, W)``, or ``(T, H, W)``: windows then lie within a frame.
        window: ``(kh, kw)``. Patches of incomplete windows at the far borders are in none.
        device: Where to.
    """
    sides = (1,) * (len(grid) - len(window)) + tuple(window)
    return _members(*grid, *sides).to(device)


@table(64)
def _members(*sides: int) -> Tensor:
    axes = len(sides) // 2
    grid, window = sides[:axes], sides[axes:]
    place, each = torch.arange(torch.Size(grid).numel()).view(grid), torch.Size(window).numel()
    if any(k > side for k, side in zip(window, grid, strict=True)):
        return place.new_zeros(0, each)
    for axis, k in enumerate(window):
        place = place.unfold(axis, k, k)
    return place.reshape(-1, each)


@torch.no_grad()
def window_similarity(x: Tensor, members: Tensor) -> Tensor:
    r"""The mean cosine of two different tokens of a window.

    .. math:: q_w = \frac{1}{k (k - 1)} \sum_{i \ne j} \cos(x_i, x_j) = \frac{\lVert \sum_i u_i \rVert^2 - \sum_i \lVert
              u_i \rVert^2}{k (k - 1)}, \qquad u_i = x_i / \lVert x_i \rVert

    Args:
        x: ``[B, N, C]``.
        members: Tokens of each window, ``[W, k]``, k >= 2.

    Returns:
        ``[B, W]`` float32 in [-1, 1].

    Cost: ``O(B N C)``, no pairs.

    Source: ALGM (Norouzi et al., CVPR 2024), which takes all pairs.
    """
    with torch.autocast(x.device.type, enabled=False):
        unit = F.normalize(as_type(x.detach(), torch.float32), dim=2)
        each = unit.index_select(1, members.flatten()).unflatten(1, tuple(members.shape))
        k = members.size(1)
        total = each.sum(dim=2).square().sum(dim=2) - each.square().sum(dim=(2, 3))
        return (total / (k * (k - 1))).clamp_(-1.0, 1.0)
