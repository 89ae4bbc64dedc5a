"""Arguments by which packed towers run on some of their units: places, segments and windows of these alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def packed_arguments(tower: Any, grid: Tensor, stays: Tensor) -> dict[str, Any]:
    """Makes the precomputed arguments of a tower for the units that stay.

    Args:
        tower: The packed tower of Qwen2.5-VL or Qwen3-VL.
        grid: ``(t, h, w)`` of each image, in patches, ``[n, 3]``.
        stays: Units that stay, rising, ``[K]``.

    Returns:
        ``position_ids`` and ``cu_seqlens``, and what the kind of tower needs besides.

    Raises:
        ValueError: If the tower is of another kind, or transformers is too old to take these arguments.
    """
    windows = hasattr(tower, "fullatt_block_indexes") and hasattr(tower, "window_size")
    learned = hasattr(tower, "pos_embed") and hasattr(tower, "interpolation_mode")
    try:
        from transformers import vision_utils as utils

        more: Any
        position_ids, seqlens = utils.get_vision_position_ids, utils.get_vision_cu_seqlens
        more = utils.get_vision_window_index if windows else utils.get_vision_interpolation_indices_and_weights
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"Expected a transformers whose towers take precomputed arguments (got one without: {error}). Update it."
        ) from None
    if not (windows or learned):
        raise ValueError(
            f"Expected the tower of Qwen2.5-VL or Qwen3-VL (got {type(tower).__name__}, which cannot run on some of "
            "its units). Reduce behind it with tokengraph.vlm.reduce."
        )
    side = int(tower.spatial_merge_size)
    unit = side * side
    rows = (stays[:, None] * unit + torch.arange(unit, device=stays.device)).flatten()
    full = seqlens(grid)
    found: dict[str, Any] = {
        "position_ids": position_ids(grid, side)[rows],
        "cu_seqlens": _segments(stays, full // unit) * unit,
    }
    if windows:
        index, ends = more(grid, spatial_merge_size=side, window_size=tower.window_size, patch_size=tower.patch_size)
        index, ends = index.to(stays.device), ends.to(stays.device)
        place = torch.full_like(index, -1).scatter(0, stays, torch.arange(stays.numel(), device=stays.device))
        there = place[index] >= 0
        before = torch.cat([there.new_zeros(1, dtype=torch.int32), there.cumsum(0, dtype=torch.int32)])
        found["window_index"] = place[index][there]
        found["cu_window_seqlens"] = before[(ends // unit).long()].unique_consecutive() * unit
    else:
        indices, weights = more(
            grid,
            num_grid_per_side=tower.num_grid_per_side,
            mode=tower.interpolation_mode,
            align_corners=tower.interpolation_align_corners,
            spatial_merge_size=side,
        )
        found["interp_indices"], found["interp_weights"] = indices[rows], weights[rows]
    return found


def _segments(stays: Tensor, ends: Tensor) -> Tensor:
    """Ends of the segments that are not empty, among the units that stay, ``[S + 1]`` int32."""
    return torch.searchsorted(stays, ends.to(stays)).int().unique_consecutive()
