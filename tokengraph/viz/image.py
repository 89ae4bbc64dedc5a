"""Converts images and patch labels to numpy arrays."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from tokengraph.edges.grid import Grid
from tokengraph.errors import check_grid
from tokengraph.kinds import explains


def to_array(values: Any, name: str) -> np.ndarray:
    """Converts a tensor on any device, or an array-like, to a numpy array; ``name`` is for the error message.

    Raises:
        TypeError: If it is neither.
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.float() if values.is_floating_point() else values).numpy()
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"Expected {name} as a tensor or an array (got {type(values).__name__}).")
    return array


@explains
def to_rgb(image: Any) -> np.ndarray:
    """Converts an image of any usual layout.

    Args:
        image: Tensor or array, ``[3, H, W]`` or ``[H, W, 3]``, float in [0, 1] or uint8. If both layouts fit, a tensor
            is read as ``[3, H, W]`` and an array as ``[H, W, 3]``.

    Returns:
        ``[H, W, 3]`` float32 in [0, 1].

    Raises:
        ValueError: If the image has another shape, or values outside [0, 1].
        TypeError: If it is no tensor or array.
    """
    array = to_array(image, "image")
    if array.ndim != 3 or 3 not in (array.shape[0], array.shape[2]) or array.size == 0:
        raise ValueError(f"Expected an image of shape [3, H, W] or [H, W, 3] (got {list(array.shape)}).")
    channels_first = array.shape[0] == 3 and (array.shape[2] != 3 or isinstance(image, Tensor))
    if channels_first:
        array = array.transpose(1, 2, 0)
    if array.dtype == np.uint8:
        return array.astype(np.float32) / 255
    low, high = float(array.min()), float(array.max())
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ValueError(
            f"Expected image values in [0, 1] or uint8 (got {low:.3g} to {high:.3g}). "
            "Undo the model's normalisation: image * std + mean."
        )
    return array.astype(np.float32).clip(0, 1)


def to_frames(frames: Any, count: int) -> np.ndarray:
    """Converts the frames of a video by :func:`to_rgb` to ``[T, H, W, 3]``; raises unless T is ``count``."""
    made = [to_rgb(frame) for frame in frames]
    if len(made) != count or len({frame.shape for frame in made}) != 1:
        shapes = sorted({frame.shape[:2] for frame in made})
        raise ValueError(f"Expected T={count} pictures of one shape, one per frame (got {len(made)} of {shapes}).")
    return np.stack(made)


def enlarge(patches: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Copies values of patches ``[H, W, ...]`` to every pixel of an image of ``shape``."""
    rows, columns = ((np.arange(n) + 0.5) * p / n for n, p in zip(shape, patches.shape, strict=False))
    return patches[rows.astype(int)[:, None], columns.astype(int)]


def one_of(values: np.ndarray, grid: Grid, index: int, name: str) -> np.ndarray:
    """Returns the rows of image ``index`` of ``values [B*H*W, ...]`` as ``[H, W, ...]``, or ``[T, H, W, ...]``.

    Raises:
        ValueError: If the values do not fit the grid, or ``index`` is out of range.
    """
    patches = math.prod(map(int, grid))
    if patches < 1 or len(values) == 0 or len(values) % patches:
        check_grid(grid, len(values), video=True)
        raise ValueError(f"Expected {name} of at least one patch (got {len(values)}).")
    images = len(values) // patches
    if not 0 <= index < images:
        raise ValueError(f"Expected index in [0, B={images}) (got {index}).")
    return values[index * patches : (index + 1) * patches].reshape(*map(int, grid), *values.shape[1:])
