"""Families whose tokens are counted one after another, and how their features lie on grids."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from tokengraph.vlm.families.base import Family, Inputs, Tile
from tokengraph.vlm.visual import Visual

RESAMPLERS = ("qformer", "perceiver_resampler", "resampler")  # their queries lie on no grid


class Resampled(Family):
    """Models whose features are answers to learned queries, on no grid: BLIP-2, InstructBLIP, Idefics2."""

    name: ClassVar[str] = "resampled"

    def serves(self, base: Any) -> bool:
        """Returns whether one of the model's modules has a resampler's name."""
        return any(name.split(".")[-1] in RESAMPLERS for name, _ in base.named_modules())

    def tiles(self, base: Any, inputs: Inputs, visual: Visual) -> list[list[Tile]]:
        """One tile an image, on no grid."""
        return [[Tile(torch.arange(n, device=visual.rows.device), None)] for n in visual.counts]


class Connected(Family):
    """Models that give all tiles of a prompt as one tensor: SmolVLM, Idefics3."""

    name: ClassVar[str] = "tiles of a prompt"

    def serves(self, base: Any) -> bool:
        """Returns whether the model has a connector and says how many tokens a tile has."""
        return hasattr(base, "connector") and isinstance(getattr(base, "image_seq_len", None), int)

    def prepare(self, base: Any, visual: Visual) -> None:
        """Counts each tile by itself: the model does not tell which of a prompt's tiles are one image."""
        visual.split(base.image_seq_len)


class Sized(Family):
    """Models that keep an image's own shape, with image_sizes in pixels: Mistral 3, Pixtral inside LLaVA."""

    name: ClassVar[str] = "image sizes"

    def serves(self, base: Any) -> bool:
        """Returns whether the tower is Pixtral's."""
        return getattr(getattr(base.config, "vision_config", None), "model_type", "") == "pixtral"

    def tiles(self, base: Any, inputs: Inputs, visual: Visual) -> list[list[Tile]]:
        """One tile an image, of its own height and width in merged patches."""
        side = base.config.vision_config.patch_size * int(getattr(base.config, "spatial_merge_size", 1))
        sizes = torch.as_tensor(inputs["image_sizes"]).tolist()
        found = []
        for count, (height, width) in zip(visual.counts, sizes, strict=True):
            grid = (int(height) // side, int(width) // side)
            rows = torch.arange(count, device=visual.rows.device)
            found.append([Tile(rows, grid if grid[0] * grid[1] == count else None)])
        return found
