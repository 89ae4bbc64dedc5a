"""``Images``, a set of images with labels or masks, and its classes for memory and subsets."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np


class Images:
    """A numbered set of images. A subclass implements :meth:`image`, and :meth:`label` or :meth:`mask` if it has them.

    Attributes:
        name: Its name in reports.
        classes: Names of the classes; ``None`` if unknown.
        has_labels: True if images have a class.
        has_masks: True if images have a mask.
        scored: Classes of masks whose IoU is averaged; ``None`` averages all that appear.
        notes: Remarks for the report, such as skipped files and empty folders.
    """

    name: str = "images"
    classes: Sequence[str] | None = None
    has_labels: bool = False
    has_masks: bool = False
    scored: Sequence[int] | None = None
    notes: Sequence[str] = ()

    def __len__(self) -> int:
        raise NotImplementedError

    def image(self, index: int) -> Any:
        """Returns a Pillow image, or uint8 ``[H, W]`` or ``[H, W, 3]``. Raises any exception if it is unreadable."""
        raise NotImplementedError

    def label(self, index: int) -> int:
        """Returns the class number of the image."""
        raise NotImplementedError

    def mask(self, index: int) -> Any:
        """Returns class numbers ``[H, W]``; 255 is ignored."""
        raise NotImplementedError

    def key(self, index: int) -> str:
        """Returns the image's name in reports."""
        return str(index)

    def stamp(self, index: int) -> str:
        """Returns a text that changes with the image or its mask; by default the key."""
        return self.key(index)


class Arrays(Images):
    """Images in memory.

    Args:
        images: ``[N, H, W, 3]`` or ``[N, H, W]`` uint8, or a sequence of arrays or Pillow images.
        labels: N class numbers.
        masks: N masks ``[H, W]`` of class numbers.
        name: Its name in reports.
        classes: Names of the classes.
        names: N keys; by default numbers.
        scored: Classes of masks whose IoU is averaged.

    Raises:
        ValueError: If there are no images, or not as many labels, masks or names; or a label is negative.
    """

    def __init__(
        self,
        images: Sequence[Any] | np.ndarray,
        labels: Sequence[int] | np.ndarray | None = None,
        masks: Sequence[Any] | np.ndarray | None = None,
        *,
        name: str = "images",
        classes: Sequence[str] | None = None,
        names: Sequence[str] | None = None,
        scored: Sequence[int] | None = None,
    ) -> None:
        for what, given in (("labels", labels), ("masks", masks), ("names", names)):
            if given is not None and len(given) != len(images):
                raise ValueError(f"Expected {len(images)} {what}, one for each image (got {len(given)}).")
        if labels is not None and len(labels) and min(int(v) for v in labels) < 0:
            raise ValueError("Expected labels of at least 0 (got a negative one). Leave such images out.")
        self._images, self._masks, self._names = images, masks, names
        self._labels = None if labels is None else [int(v) for v in labels]
        self.name, self.classes, self.scored = name, classes, scored
        self.has_labels, self.has_masks = labels is not None, masks is not None

    def __len__(self) -> int:
        return len(self._images)

    def image(self, index: int) -> Any:
        """As it was given."""
        return self._images[index]

    def label(self, index: int) -> int:
        """As it was given."""
        assert self._labels is not None
        return self._labels[index]

    def mask(self, index: int) -> Any:
        """As it was given."""
        assert self._masks is not None
        return self._masks[index]

    def key(self, index: int) -> str:
        """Returns the given name, or the number."""
        return str(index) if self._names is None else self._names[index]

    def stamp(self, index: int) -> str:
        """Returns a checksum of pixels and mask."""
        total = zlib.crc32(self.key(index).encode())
        things = [self._images[index]] + ([] if self._masks is None else [self._masks[index]])
        for thing in things:
            try:
                array = np.ascontiguousarray(np.asarray(thing))
                total = zlib.crc32(f"{array.shape} {array.dtype}".encode(), zlib.crc32(array.tobytes(), total))
            except Exception:  # a broken image: the run reports it
                total = zlib.crc32(b"broken", total)
        return f"{total:08x}"


class Subset(Images):
    """Some images of another set, in the order given.

    Args:
        whole: The other set.
        indices: Numbers in it.
    """

    def __init__(self, whole: Images, indices: Sequence[int]) -> None:
        self.whole, self.indices = whole, [int(i) for i in indices]
        self.name, self.classes, self.scored, self.notes = whole.name, whole.classes, whole.scored, whole.notes
        self.has_labels, self.has_masks = whole.has_labels, whole.has_masks

    def __len__(self) -> int:
        return len(self.indices)

    def image(self, index: int) -> Any:
        """Of the whole set."""
        return self.whole.image(self.indices[index])

    def label(self, index: int) -> int:
        """Of the whole set."""
        return self.whole.label(self.indices[index])

    def mask(self, index: int) -> Any:
        """Of the whole set."""
        return self.whole.mask(self.indices[index])

    def key(self, index: int) -> str:
        """Of the whole set."""
        return self.whole.key(self.indices[index])

    def stamp(self, index: int) -> str:
        """Of the whole set."""
        return self.whole.stamp(self.indices[index])


def limited(images: Images, limit: int | None, seed: int) -> Images:
    """Draws at most ``limit`` images with ``seed`` and keeps their order; ``None`` keeps all."""
    if limit is None or limit >= len(images):
        return images
    if limit < 1:
        raise ValueError(f"Expected limit >= 1 images (got {limit}).")
    drawn = np.random.default_rng(seed).permutation(len(images))[:limit]
    return Subset(images, sorted(drawn.tolist()))
