"""Applies a function of equal images to each image of a padded batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from tokengraph.maps.hard import Assignment
from tokengraph.maps.join import join
from tokengraph.maps.soft import SoftAssignment


def each_image(
    make: Callable[..., Assignment | SoftAssignment], rows: Sequence[Any], mask: Tensor
) -> Assignment | SoftAssignment:
    """Returns the map of the batch over the True tokens of ``mask [B, N]``, made image by image.

    Args:
        make: Returns the map of ``[1, n, ...]`` rows.
        rows: Its arguments, each ``[B, N, ...]``.
        mask: ``[B, N]`` bool.
    """
    parts = [make(*(r[b : b + 1, mask[b]] for r in rows)) for b in range(mask.size(0))]
    return join(parts, None)
