"""The prompts of a batch: where their placeholders are, and the inputs without some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tokengraph.vlm.columns import Columns, find_placeholders, padding_id
from tokengraph.vlm.encode import MODALITIES, vision_inputs
from tokengraph.vlm.families.base import Family
from tokengraph.vlm.visual import Visual


class Prompt:
    """The prompts of a batch, and the placeholders of each modality.

    Args:
        base: The model without its language head.
        family: Its family.
        inputs: The inputs as given; they stay as they are.
        ids: ``[B, L]``.
        mask: ``[B, L]``, zero at padding.
    """

    def __init__(self, base: Any, family: Family, inputs: Mapping[str, Any], ids: Tensor, mask: Tensor) -> None:
        self.base, self.family, self.inputs, self.ids, self.mask = base, family, inputs, ids, mask
        self.marks = torch.zeros_like(ids)
        self.found: list[Tensor] = []
        self.counts: list[list[int]] = []
        self.tokens: set[int] = set()

    def place(self, visual: Visual) -> None:
        """Finds the placeholders of a modality's features.

        Raises:
            ValueError: If they do not fit.
        """
        token = self.family.token(self.base, visual.modality)
        if token is None:
            raise ValueError(
                f"Expected a model with placeholders for a {visual.modality} (got {type(self.base).__name__}, whose "
                "config names none)."
            )
        found = find_placeholders(self.ids, self.mask, token, visual)
        self.marks.view(-1)[found] = 1 + MODALITIES.index(visual.modality)
        self.found.append(found)
        self.counts.append(visual.counts)
        self.tokens.add(token)

    def rows_of(self, modality: int) -> list[int]:
        """The batch row in which each image of the given modality stands."""
        counts = self.counts[modality]
        firsts = torch.tensor([0, *counts[:-1]], device=self.ids.device).cumsum(0)
        found = self.found[modality]
        return (found[firsts.clamp_max(found.numel() - 1)] // self.ids.size(1)).tolist()

    def without(self, stands: Sequence[Tensor]) -> dict[str, Any]:
        """The inputs without pixels, and without the placeholders of features that do not remain.

        Args:
            stands: For each modality the features whose places remain, rising.
        """
        leaves = torch.zeros_like(self.ids, dtype=torch.bool)
        for found, stay in zip(self.found, stands, strict=True):
            leaves.view(-1)[found] = True
            leaves.view(-1)[found[stay]] = False
        pixels = vision_inputs(self.base)
        given = {name: value for name, value in self.inputs.items() if value is not None}
        given.pop("mm_encoder_outputs", None)
        if sum(s.numel() for s in stands) == sum(f.numel() for f in self.found):  # positions stay the model's own
            return {n: v for n, v in given.items() if n not in pixels or n.endswith("_grid_thw")}
        columns = Columns(~leaves, self.mask)
        shape, result = self.ids.shape, {}
        pad = padding_id(self.ids, self.mask, self.base.config, self.tokens)
        given.setdefault("attention_mask", self.mask)
        for name, value in given.items():
            if name in pixels or name in ("position_ids", "cache_position", "rope_deltas"):
                continue
            if isinstance(value, Tensor) and value.dim() >= 2 and value.shape[:2] == shape:
                value = columns.take(name, value, pad if name == "input_ids" else None)
            result[name] = value
        positions = given.get("position_ids")
        if positions is None:
            positions = self.family.positions(self.base, self.inputs, self.ids, self.mask, self.marks)
        result["position_ids"] = columns.take_positions(positions)
        return result

    def number(self, result: dict[str, Any]) -> None:
        """Adds positions that a model cannot find without ids, if none are there."""
        if "position_ids" not in result and self.family.needs_ids:
            result["position_ids"] = self.family.positions(self.base, self.inputs, self.ids, self.mask, self.marks)
