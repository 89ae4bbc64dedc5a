"""Qwen2-VL and its kin: packed images of their own shapes, and positions with an axis each for time, row and column."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from tokengraph.vlm.families.base import Family, Inputs, Tile, call_with
from tokengraph.vlm.visual import Visual


class PackedGrids(Family):
    """Models that say each image's shape as ``image_grid_thw``, in patches; ``spatial_merge_size`` of them are one."""

    name: ClassVar[str] = "packed grids"

    def serves(self, base: Any) -> bool:
        """Returns whether the model reads ``image_grid_thw``."""
        import inspect

        return "image_grid_thw" in inspect.signature(base.get_image_features).parameters

    def tiles(self, base: Any, inputs: Inputs, visual: Visual) -> list[list[Tile]]:
        """One tile for each frame; an image is one frame."""
        grids = inputs.get(f"{visual.modality}_grid_thw")
        if grids is None:
            return super().tiles(base, inputs, visual)
        side = merge_size(base)
        shapes = [(t, h // side, w // side) for t, h, w in grids.tolist()]
        if [t * h * w for t, h, w in shapes] != visual.counts:
            frames = [(h, w) for t, h, w in shapes for _ in range(t)]
            if [h * w for h, w in frames] == visual.counts:  # one entry a frame
                shapes = [(1, *frame) for frame in frames]
            else:
                return super().tiles(base, inputs, visual)
        device = visual.rows.device
        return [
            [Tile(rows, (h, w)) for rows in torch.arange(t * h * w, device=device).split(h * w)] for t, h, w in shapes
        ]


class MRope(PackedGrids):
    """Models with ``get_rope_index``: Qwen2-VL, Qwen2.5-VL, Qwen3-VL, GLM-4V and their kin."""

    name: ClassVar[str] = "M-RoPE"
    needs_ids: ClassVar[bool] = True

    def serves(self, base: Any) -> bool:
        """Returns whether the model computes positions of several axes."""
        return hasattr(base, "get_rope_index")

    def positions(self, base: Any, inputs: Inputs, ids: Tensor, mask: Tensor, marks: Tensor) -> Tensor:
        """The model's own positions ``[3, B, L]`` of the whole prompt, by its own function."""
        given = dict(inputs)
        given["attention_mask"] = mask
        if not isinstance(given.get("mm_token_type_ids"), Tensor):
            given["mm_token_type_ids"] = marks.int()
        positions, _ = call_with(base.get_rope_index, {**given, "input_ids": ids})
        return positions


def merge_size(base: Any) -> int:
    """Patches along one side of a token."""
    vision = getattr(base, "visual", None) or getattr(base, "vision_tower", None)
    places = (vision, getattr(vision, "config", None), getattr(base.config, "vision_config", None))
    found = (getattr(place, name, None) for place in places for name in ("spatial_merge_size", "merge_size"))
    return next((int(size) for size in found if isinstance(size, int)), 1)
