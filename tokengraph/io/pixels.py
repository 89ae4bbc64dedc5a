"""Converts Pillow images of any mode to RGB or to grey values in [0, 1], without clipping."""

from __future__ import annotations

from typing import Any

import numpy as np

from tokengraph.optional import optional

SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
UNSIGNED, SIGNED, WHITE_IS_ZERO = 1, 2, 0  # values of the last two
WHITE = (255, 255, 255, 255)


def to_light(image: Any) -> Any:
    """Converts an image so that black is 0 and white is the maximum, as a screen shows it.

    Every mode of 8 bits per channel becomes ``"RGB"``, with transparent pixels on white. Wider modes, which
    ``convert("RGB")`` would clip at 255, become grey values in [0, 1], mode ``"F"``:

    * 16 bits are divided by the maximum that the file states, 65,535 or less (4,095 for 12 bits);
    * floats that all lie in [0, 1] stay as they are;
    * other floats, and integers of 32 bits or with a sign, are scaled so that their minimum is 0 and their maximum 1.

    Args:
        image: A ``PIL.Image.Image`` as opened from a file. Rotate it first if needed: the result has no tags.

    Returns:
        A ``PIL.Image.Image`` of the same size, mode ``"RGB"`` or ``"F"``.

    Raises:
        ValueError: If values are NaN or infinite.

    Cost: a few passes over the pixels, on the CPU.
    """
    tags = getattr(image, "tag_v2", None) or {}
    if image.mode in ("I", "F", *SIXTEEN_BITS) or _first(tags, SAMPLE_FORMAT) == SIGNED:
        return optional("PIL.Image").fromarray(_grey(image, tags))
    if image.mode == "La":  # Pillow converts "La" to "LA" alone
        image = image.convert("LA")
    if _transparent(image):
        return _on_white(image)
    return image.convert("RGB")


def _grey(image: Any, tags: Any) -> np.ndarray:
    """Returns the values of one wide channel, ``[H, W]`` float32 in [0, 1]."""
    raw = np.asarray(image)
    values = raw.astype(np.float64)
    if image.mode in SIXTEEN_BITS:
        light = values / (2 ** min(int(_first(tags, BITS, 16)), 16) - 1)
    elif image.mode == "I" and image.format in ("PNG", "PPM"):  # Pillow widens 16 bits of these formats
        light = values / 65535
    else:
        light = _stretched(_as_stored(values, image.mode, tags), keep_unit=image.mode == "F")
    if _first(tags, PHOTOMETRIC) == WHITE_IS_ZERO and image.mode != "L":  # Pillow inverts only 8-bit images
        light = 1 - light
    hidden = image.info.get("transparency")
    if isinstance(hidden, int):
        light[raw == hidden] = 1.0
    return light.clip(0, 1).astype(np.float32)


def _as_stored(values: np.ndarray, mode: str, tags: Any) -> np.ndarray:
    """Corrects signed bytes and unsigned 32-bit values, which Pillow reads with the wrong sign."""
    if mode == "L":
        return np.where(values > 127, values - 256, values)
    if mode == "I" and _first(tags, BITS) == 32 and _first(tags, SAMPLE_FORMAT, UNSIGNED) == UNSIGNED:
        return np.where(values < 0, values + 2**32, values)
    return values


def _stretched(values: np.ndarray, keep_unit: bool) -> np.ndarray:
    """Scales values so that their minimum is 0 and their maximum 1; constant values become 0.5."""
    wrong = int((~np.isfinite(values)).sum())
    if wrong:
        raise ValueError(f"Expected finite pixels (got {wrong} that are NaN or infinite). Fill them first.")
    low, high = float(values.min()), float(values.max())
    if keep_unit and low >= 0 and high <= 1:
        return values
    return (values - low) / (high - low) if high > low else np.full_like(values, 0.5)


def _transparent(image: Any) -> bool:
    palette = getattr(image.palette, "mode", "") if image.mode == "P" else ""
    return image.mode in WITH_ALPHA or "transparency" in image.info or palette.endswith("A")


def _on_white(image: Any) -> Any:
    hidden = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(hidden, tuple) and max(hidden) > 255:  # 16 bits; Pillow reads 8
        image.info["transparency"] = tuple(value >> 8 for value in hidden)
    clear = image.convert("RGBA")
    pillow = optional("PIL.Image")
    return pillow.alpha_composite(pillow.new("RGBA", clear.size, WHITE), clear).convert("RGB")


def _first(tags: Any, tag: int, default: Any = None) -> Any:
    """Returns the value of a tag, or the first value if it has one for each channel."""
    value = tags.get(tag, default)
    return value[0] if isinstance(value, tuple) and value else value
