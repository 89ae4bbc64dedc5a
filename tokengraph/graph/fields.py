"""Fields of a TokenGraph that need care: sizes that PyG may call, grids of each image, the batch layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tokengraph.edges.grid import Grid
from tokengraph.errors import check_grid


def is_one(grid: Any) -> bool:
    """Whether this is one grid ``(H, W)`` or ``(T, H, W)``, not a list of grids."""
    return not isinstance(grid, Sequence) or not any(isinstance(side, Sequence) for side in grid)


class Size(Tensor):
    """``size [M]`` that PyG can call: its ``Data.size()`` is a method, the shape ``(M, M)`` of the adjacency matrix."""

    # Whatever is computed from it is an ordinary tensor.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __call__(self, dim: int | None = None) -> tuple[int, int] | int:
        """What ``Data.size(dim)`` returns."""
        return self.numel() if dim is not None else (self.numel(), self.numel())


def grid_of_each(grid: Grid | Sequence[Grid] | None, counts: list[int]) -> list[Grid] | None:
    """One grid an image, checked against the number of tokens; ``None`` where none was given."""
    if grid is None:
        return None
    grids = [grid] * len(counts) if is_one(grid) else list(grid)
    if len(grids) != len(counts):
        raise ValueError(f"Expected one grid an image, B={len(counts)} (got {len(grids)}).")
    checked = [check_grid(g, n, video=True) for g, n in zip(grids, counts, strict=True)]  # type: ignore[arg-type]
    if len({len(g) for g in checked}) > 1:
        raise ValueError(
            f"Expected grids of one kind, images or videos (got {checked}). Give an image among videos one frame: "
            "(1, H, W)."
        )
    return checked


def batch_layout(counts: list[int], like: Tensor) -> dict[str, Tensor]:
    """``batch [M]`` and ``ptr [B+1]`` for these numbers of tokens, on the device of ``like``."""
    count = torch.tensor(counts, device=like.device)
    ptr = torch.cat([count.new_zeros(1), count.cumsum(0)])
    image = torch.arange(len(counts), device=like.device)
    return {"batch": torch.repeat_interleave(image, count, output_size=sum(counts)), "ptr": ptr}
