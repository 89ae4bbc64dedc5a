"""Reads the images of one chunk once, and prepares them for each setting's preprocessing."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokengraph.evaluate.config import DataConfig
from tokengraph.evaluate.images import Images
from tokengraph.evaluate.transform import to_input, to_target


@dataclass
class Chunk:
    """Some images of a set.

    Args:
        index: Numbers of the readable images, ascending.
        raw: The images.
        masks: Their masks; empty if the set has none.
        bad: Numbers of unreadable images, with the reason.
    """

    index: list[int]
    raw: list[Any]
    masks: list[Any]
    bad: list[tuple[int, str]]
    _ready: dict[DataConfig, Tensor] = field(default_factory=dict)

    def inputs(self, config: DataConfig) -> Tensor:
        """Returns ``[n, 3, S, S]`` for a preprocessing; cached, because most settings share one."""
        if config not in self._ready:
            self._ready[config] = torch.stack([to_input(image, config) for image in self.raw])
        return self._ready[config]

    def targets(self, config: DataConfig) -> Tensor:
        """Returns masks ``[n, S, S]`` for a preprocessing."""
        return torch.stack([to_target(mask, config) for mask in self.masks])

    def batches(self, values: Tensor, size: int) -> Iterator[tuple[slice, Tensor]]:
        """Yields consecutive batches of at most ``size`` images."""
        for start in range(0, len(values), size):
            yield slice(start, start + size), values[start : start + size]


def read_chunk(images: Images, start: int, stop: int, config: DataConfig, workers: int) -> Chunk:
    """Reads images ``start`` to ``stop``; notes and leaves out images that cannot be read or prepared."""

    def read(index: int) -> tuple[Any, Any, str]:
        """Returns image, mask and an empty text, or the reason why they cannot be read."""
        try:
            image = images.image(index)
            to_input(image, config)  # an error in a later step would stop the run
            mask = images.mask(index) if images.has_masks else None
            if mask is not None:
                _check_mask(mask, image)
            return image, mask, ""
        except MemoryError:
            raise
        except Exception as error:  # broken files raise anything
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            return None, None, reason or type(error).__name__

    if workers:
        with ThreadPoolExecutor(workers) as pool:
            found = list(pool.map(read, range(start, stop)))
    else:
        found = [read(index) for index in range(start, stop)]
    good = [i for i, (_, _, reason) in enumerate(found) if not reason]
    bad = [(start + i, reason) for i, (_, _, reason) in enumerate(found) if reason]
    masks = [found[i][1] for i in good] if images.has_masks else []
    return Chunk([start + i for i in good], [found[i][0] for i in good], masks, bad)


def _check_mask(mask: Any, image: Any) -> None:
    array = np.asarray(mask)
    if array.ndim != 2:
        raise ValueError(f"Expected a mask of shape [H, W] (got {list(array.shape)})")
    sides = image.shape[:2] if hasattr(image, "shape") else image.size[::-1]
    if tuple(array.shape) != tuple(sides):
        raise ValueError(f"Expected a mask of the image's size {tuple(sides)} (got {tuple(array.shape)})")
