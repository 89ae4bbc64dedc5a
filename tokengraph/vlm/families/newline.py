"""LLaVA-NeXT and its kin: a small copy of the image, then its tiles row by row, a learned line break after each row."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from tokengraph.vlm.families.base import Family, Inputs, Tile, square
from tokengraph.vlm.visual import Visual


class Newlines(Family):
    """Models with ``image_newline``: LLaVA-NeXT, LLaVA-NeXT-Video, LLaVA-OneVision.

    Line breaks are rows of no tile: they say where a row of the image ends, so they always remain, beyond the budget.
    """

    name: ClassVar[str] = "line breaks"

    def serves(self, base: Any) -> bool:
        """Returns whether the model has a learned line break."""
        return getattr(base, "image_newline", None) is not None

    def tiles(self, base: Any, inputs: Inputs, visual: Visual) -> list[list[Tile]]:
        """For each image the copy and, if there is one, the grid of its tiles; for a video its frames."""
        newline = base.image_newline.detach().to(visual.rows)
        breaks = (visual.rows.detach() == newline).all(dim=1)
        found, start = [], 0
        for count in visual.counts:
            ends = breaks[start : start + count].nonzero().squeeze(1).tolist()
            frames = None
            if visual.modality == "video":
                frames = int(inputs["pixel_values_videos"].shape[1])
            found.append(_split(count, ends, frames, visual.rows.device))
            start += count
        return found


def _split(count: int, ends: list[int], frames: int | None, device: torch.device) -> list[Tile]:
    """The tiles of one image of ``count`` rows whose line breaks are at ``ends``."""
    rows = torch.arange(count, device=device)
    if frames is not None or len(ends) < 2:
        body = rows[: count - len(ends)] if ends in ([], [count - 1]) else rows[:0]
        parts = body.split(max(body.numel() // (frames or 1), 1)) if body.numel() else []
        return [Tile(part, square(part.numel())) for part in parts]
    width = ends[-1] - ends[-2] - 1
    base = ends[0] - width
    lines = rows[base:].view(len(ends), width + 1)[:, :width]
    tiles = [Tile(rows[:base], square(base))] if base else []
    return [*tiles, Tile(lines.flatten(), (len(ends), width))]
