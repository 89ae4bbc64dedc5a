"""Runs a model's encoder on the images and videos of a prompt."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from tokengraph.select.base import Select
from tokengraph.vlm.families.base import call_with
from tokengraph.vlm.tower import watch
from tokengraph.vlm.visual import Visual

MODALITIES = ("image", "video")
PIXELS = {
    "image": ("pixel_values", "pixel_values_images", "image_patches"),
    "video": ("pixel_values_videos",),
}


def encode(base: Any, inputs: Mapping[str, Any], select: Select) -> list[Visual]:
    """Returns the features of each modality in the inputs, with the tower's attention if the strategy reads it.

    Raises:
        ValueError: If the inputs have no pixels, and no features either.
    """
    given = inputs.get("mm_encoder_outputs") or {}
    found = []
    for modality in MODALITIES:
        if given.get(modality) is not None:
            found.append(Visual.of(modality, given[modality]))
            continue
        function = getattr(base, f"get_{modality}_features", None)
        if function is None or not any(inputs.get(name) is not None for name in _pixels(function, modality)):
            continue
        with watch(base, select) as seen:
            visual = Visual.of(modality, call_with(function, inputs, return_dict=True))
        visual.watched = seen[0] if seen else None
        found.append(visual)
    if not found:
        names = ", ".join(name for modality in MODALITIES for name in PIXELS[modality])
        raise ValueError(
            f"Expected inputs with pixels ({names}) or mm_encoder_outputs (got {', '.join(sorted(inputs))}). Prompts "
            "without images need no reduction."
        )
    return found


def vision_inputs(base: Any) -> set[str]:
    """Names of the inputs that the encoders read, and the language model does not."""
    names: set[str] = {name for pixels in PIXELS.values() for name in pixels}
    for modality in MODALITIES:
        if function := getattr(base, f"get_{modality}_features", None):
            names |= set(inspect.signature(function).parameters)
    return names - {"kwargs", "args", "self", "input_ids", "attention_mask"}


def _pixels(function: Any, modality: str) -> list[str]:
    """The names of a modality's pixels that the encoder takes."""
    names = inspect.signature(function).parameters
    return [name for name in PIXELS[modality] if name in names] or list(PIXELS[modality][:1])
