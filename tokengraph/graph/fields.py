"""Fields of a TokenGraph: ``size``, which PyG may also call; the grid of each image; ``batch`` and ``ptr``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tokengraph.edges.grid import Grid
from tokengraph.errors import check_grid


def is_one(grid: Any) -> bool:
    """True if this is one grid ``(H, W)`` or ``(T, H, W)``, not a list of grids."""
    return not isinstance(grid, Sequence) or not any(isinstance(side, Sequence) for side in grid)


class Size(Tensor):
    """The tensor ``size [M]``, which PyG can also call: its ``Data.size()`` returns the adjacency shape ``(M, M)``."""

    # Results of operations on it are ordinary tensors.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __call__(self, dim: int | None = None) -> tuple[int, int] | int:
        """Returns the result of PyG's ``Data.size(dim)``."""
        return self.numel() if dim is not None else (self.numel(), self.numel())


def grid_of_each(grid: Grid | Sequence[Grid] | None, counts: list[int]) -> list[Grid] | None:
    """Returns one checked grid for each image, or ``None`` if none was given; ``counts`` are tokens per image.

    Raises:
        ValueError: If grids do not fit the images or their tokens.
        TypeError: If a grid has a wrong type.
    """
    if grid is None:
        return None
    grids = [grid] * len(counts) if is_one(grid) else list(grid)
    if len(grids) != len(counts):
        raise ValueError(f"Expected one grid per image, B={len(counts)} (got {len(grids)}).")
    checked = [check_grid(g, n, video=True) for g, n in zip(grids, counts, strict=True)]  # type: ignore[arg-type]
    if len({len(g) for g in checked}) > 1:
        raise ValueError(
            f"Expected grids of one kind, images or videos (got {checked}). Give an image among videos one frame: "
            "(1, H, W)."
        )
    return checked


def batch_layout(counts: list[int], like: Tensor) -> dict[str, Tensor]:
    """Returns ``batch [M]`` and ``ptr [B+1]`` for these numbers of tokens per image, on the device of ``like``."""
    count = torch.tensor(counts, device=like.device)
    ptr = torch.cat([count.new_zeros(1), count.cumsum(0)])
    image = torch.arange(len(counts), device=like.device)
    return {"batch": torch.repeat_interleave(image, count, output_size=sum(counts)), "ptr": ptr}


def summary(graph: Any) -> str:
    """Returns one line about a token graph: images, nodes, edges, channels, grid and prefix tokens."""
    edges = 0 if graph.edge_index is None else graph.edge_index.size(1)
    prefix = graph.prefix.size(1) if "prefix" in graph else 0
    return (
        f"{type(graph).__name__}(images={graph.num_images}, nodes={graph.x.size(0)}, edges={edges}, "
        f"channels={graph.x.size(1)}, grid={graph._store.get('grid')}, prefix={prefix})"
    )
