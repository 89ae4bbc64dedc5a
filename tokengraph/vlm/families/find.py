"""Finds the family of a vision-language model by what it has, or says why it cannot be served."""

from __future__ import annotations

from typing import Any

from tokengraph.vlm.families.base import Family
from tokengraph.vlm.families.counted import Connected, Resampled, Sized
from tokengraph.vlm.families.mrope import MRope, PackedGrids
from tokengraph.vlm.families.newline import Newlines

FAMILIES: tuple[Family, ...] = (MRope(), PackedGrids(), Newlines(), Resampled(), Connected(), Sized(), Family())


def find_base(model: Any) -> Any:
    """Returns the model without its language head, which encodes images and knows the placeholders.

    Raises:
        TypeError: If it is no vision-language model of transformers.
        ValueError: If it is one that takes its images in another way than by placeholders.
    """
    inner = getattr(model, "_orig_mod", model)
    inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    base = getattr(inner, "base_model", inner)
    config = getattr(base, "config", None)
    if config is None or not (hasattr(base, "get_image_features") or hasattr(base, "get_video_features")):
        hint = "Expected a vision-language model of transformers 5"
        if hasattr(config, "vision_config") and hasattr(config, "text_config"):
            raise ValueError(
                f"{hint} that hands image features to its language model at placeholders (got "
                f"{type(model).__name__}). Reduce inside its vision tower with tokengraph.attach."
            )
        raise TypeError(f"{hint} (got {type(model).__name__}). For a vision transformer use tokengraph.attach.")
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"Expected a decoder-only model (got {type(model).__name__}, whose encoder reads the images). Reduce "
            "inside its vision tower with tokengraph.attach."
        )
    if all(FAMILIES[-1].token(base, modality) is None for modality in ("image", "video")):
        raise ValueError(
            f"Expected a model with placeholders for images (got {type(model).__name__}, whose config names none). "
            "Reduce inside its vision tower with tokengraph.attach."
        )
    return base


def find_family(base: Any) -> Family:
    """Returns the first family that serves the model; the last one serves all."""
    return next(family for family in FAMILIES if family.serves(base))
