"""Token retention for servers: pure functions of tensors, with counts that are known before any feature."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tokengraph.errors import check_positive, check_tokens
from tokengraph.kinds import explains
from tokengraph.select.base import Select
from tokengraph.select.rounds import choose, reduce_rows, representatives
from tokengraph.vlm.budget import check_keep, retained_count, split_budget
from tokengraph.vlm.selectors.names import resolve

Grids = Tensor | Sequence[Sequence[int]]


@explains
def retained_counts(grid_thw: Grids, merge_size: int, keep: int | float, *, across: bool = False) -> list[int]:
    """Number of tokens that remain of each image or video.

    Args:
        grid_thw: ``(t, h, w)`` of each, in patches, ``[n, 3]``.
        merge_size: Patches along one side of a token.
        keep: Share of each frame's tokens, or tokens of each image or video; see :func:`retained_count`.
        across: Choose among all frames together.

    Raises:
        ValueError: If ``keep`` or a grid is out of range.

    Example:
        >>> retained_counts([(1, 48, 48), (4, 8, 8)], 2, 0.25)
        [144, 16]
    """
    check_keep(keep)
    return [sum(_budgets(frames, size, keep, across)) for frames, size, _ in _shapes(grid_thw, merge_size)]


@explains
def retention_mask(
    embeds: Tensor,
    grid_thw: Grids,
    merge_size: int,
    keep: int | float,
    *,
    select: str | type[Select] | Select = "dpc-knn",
    across: bool = False,
) -> Tensor:
    """Marks the tokens that remain: exactly as many True for each image as :func:`retained_counts` says.

    Args:
        embeds: Features of all images and videos, one after another, ``[M, C]``, as the projector gives them.
        grid_thw: ``(t, h, w)`` of each, in patches, ``[n, 3]``.
        merge_size: Patches along one side of a token.
        keep: As for :func:`retained_counts`.
        select: A strategy that reads features alone. One that merges marks the tokens whose places clusters take.
        across: Choose among all frames of a video together.

    Returns:
        ``[M]`` bool, on the device of ``embeds``.

    Raises:
        ValueError: If shapes do not fit, ``keep`` is out of range, or the strategy does not keep a fixed number.

    Cost: the strategy's. No image depends on another.

    Example:
        >>> retention_mask(torch.eye(4), [(1, 4, 4)], 2, 2, select="farthest-points").sum().item()
        2
    """
    return retain(embeds, grid_thw, merge_size, keep, select=select, across=across)[1]


@explains
@torch.no_grad()
def retain(
    embeds: Tensor,
    grid_thw: Grids,
    merge_size: int,
    keep: int | float,
    *,
    select: str | type[Select] | Select = "dpc-knn",
    across: bool = False,
) -> tuple[Tensor, Tensor]:
    """Reduces the features too, for servers that let a merged token take its representative's place.

    Args:
        embeds: As for :func:`retention_mask`, and so are the others.
        grid_thw: See there.
        merge_size: See there.
        keep: See there.
        select: See there.
        across: See there.

    Returns:
        Rows ``[K, C]`` in the order of their places, and the mask ``[M]`` of these places.
    """
    check_tokens(embeds, dims=(2,), name="embeds")
    check_keep(keep)
    chosen = resolve(select)
    shapes = _shapes(grid_thw, merge_size)
    total = sum(frames * size for frames, size, _ in shapes)
    if embeds.size(0) != total:
        raise ValueError(
            f"Expected embeds of shape [{total}, C] for these grids and merge_size={merge_size} (got "
            f"{list(embeds.shape)})."
        )
    if chosen.ragged:
        raise ValueError(
            f"Expected a strategy that keeps a fixed number of tokens (got {type(chosen).__name__}, whose threshold "
            "decides). Servers reserve tokens before they see features."
        )
    mask = torch.zeros(total, dtype=torch.bool, device=embeds.device)
    rows, start = [], 0
    for frames, size, grid in shapes:
        groups = [(frames * size, (frames, *grid))] if across and frames > 1 else [(size, grid)] * frames
        for (count, shape), budget in zip(groups, _budgets(frames, size, keep, across), strict=True):
            part = embeds[start : start + count]
            step = choose(chosen, part[None], budget, shape)
            if step.num_clusters != budget:
                raise ValueError(
                    f"Expected a strategy that keeps {budget} of {count} tokens (got {type(chosen).__name__}, which "
                    f"makes {step.num_clusters}). Use one that reaches every number, such as 'dpc-knn'."
                )
            places = representatives(step)
            order = places.argsort()
            mask[start + places] = True
            rows.append(reduce_rows(step, part, chosen)[0][order])
            start += count
    return torch.cat(rows), mask


@explains
def retained_positions(mask: Tensor, grid_thw: Grids, merge_size: int) -> Tensor:
    """Where the retained tokens are: ``[K, 3]`` int64 as (t, y, x), in tokens of their image or video.

    Args:
        mask: Of :func:`retention_mask`, ``[M]``.
        grid_thw: ``(t, h, w)`` of each image or video, in patches, ``[n, 3]``.
        merge_size: Patches along one side of a token.

    Example:
        >>> retained_positions(torch.tensor([False, True, True, False]), [(1, 4, 4)], 2).tolist()
        [[0, 0, 1], [0, 1, 0]]
    """
    places = []
    for frames, _, (height, width) in _shapes(grid_thw, merge_size):
        axes = [torch.arange(n, device=mask.device) for n in (frames, height, width)]
        places.append(torch.cartesian_prod(*axes).view(-1, 3))
    every = torch.cat(places)
    if mask.shape != (every.size(0),):
        raise ValueError(f"Expected mask of shape [{every.size(0)}] for these grids (got {list(mask.shape)}).")
    return every[mask]


def _shapes(grid_thw: Grids, merge_size: int) -> list[tuple[int, int, tuple[int, int]]]:
    """Frames, tokens a frame and the frame's grid in tokens, of each image or video."""
    check_positive(merge_size=merge_size)
    grids = grid_thw.tolist() if isinstance(grid_thw, Tensor) else grid_thw
    found = []
    for grid in grids:
        if len(grid) != 3 or min(grid) < 1 or grid[1] % merge_size or grid[2] % merge_size:
            raise ValueError(
                f"Expected grid_thw of (t, h, w) with sides divisible by merge_size={merge_size} (got {tuple(grid)})."
            )
        frames, height, width = int(grid[0]), int(grid[1]) // merge_size, int(grid[2]) // merge_size
        found.append((frames, math.prod((height, width)), (height, width)))
    return found


def _budgets(frames: int, size: int, keep: int | float, across: bool) -> list[int]:
    return [retained_count(frames * size, keep)] if across and frames > 1 else split_budget(keep, [size] * frames)
