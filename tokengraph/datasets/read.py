"""Reads and prepares the images of one chunk in threads; unreadable ones are noted and left out."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tokengraph.evaluate.config import DataConfig
from tokengraph.evaluate.images import Images
from tokengraph.evaluate.transform import to_input, to_target


@dataclass(frozen=True)
class Prepared:
    """Some images of a set, ready for the model.

    Args:
        index: Numbers of the readable images, ascending.
        inputs: ``[n, 3, S, S]`` float32.
        masks: Class numbers of the pixels, ``[S, S]`` each; empty if the set has none.
        skipped: Path and reason of each unreadable image.
    """

    index: list[int]
    inputs: Tensor
    masks: list[np.ndarray]
    skipped: list[tuple[str, str]]


def prepare(images: Images, numbers: range, config: DataConfig, workers: int) -> Prepared:
    """Reads images, and cuts and normalises them as the checkpoint's evaluation does.

    Args:
        images: The set.
        numbers: Numbers of the images to read.
        config: The checkpoint's preprocessing.
        workers: Threads; 0 reads in this one.
    """

    def read(index: int) -> tuple[Tensor | None, np.ndarray | None, str]:
        """Returns one image's input and mask, or the reason why it cannot be read."""
        try:
            values = to_input(images.image(index), config)
            mask = to_target(images.mask(index), config).numpy() if images.has_masks else None
            return values, mask, ""
        except MemoryError:
            raise
        except Exception as error:  # broken files raise anything
            lines = [line for line in str(error).splitlines() if line.strip()]
            return None, None, lines[0] if lines else type(error).__name__

    if workers:
        with ThreadPoolExecutor(workers) as pool:
            found = list(pool.map(read, numbers))
    else:
        found = [read(index) for index in numbers]
    good = [(index, values, mask) for index, (values, mask, why) in zip(numbers, found, strict=True) if not why]
    bad = [(images.key(index), why) for index, (*_, why) in zip(numbers, found, strict=True) if why]
    inputs = [values for _, values, _ in good if values is not None]
    shape = (0, 3, config.size, config.size)
    return Prepared(
        [index for index, *_ in good],
        torch.stack(inputs) if inputs else torch.zeros(shape),
        [mask for *_, mask in good if mask is not None],
        bad,
    )
