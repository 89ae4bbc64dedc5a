"""Reads a data set of Hugging Face's ``datasets`` from the hub, its cache or a folder of ``save_to_disk``."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from tokengraph.evaluate.images import Images
from tokengraph.io.hub import patient_hub
from tokengraph.optional import optional

LABELS = ("label", "labels", "fine_label", "class", "target")
MASKS = ("annotation", "mask", "segmentation_mask", "semantic_segmentation", "label")


class Hub(Images):
    """Rows of a ``datasets.Dataset`` with a column of images.

    Args:
        rows: The data set; anything with ``features``, ``__len__`` and ``__getitem__`` to a dict.
        name: Its name in reports.

    Raises:
        ValueError: If no column holds images.
    """

    def __init__(self, rows: Any, name: str) -> None:
        features = dict(rows.features)
        kinds = {column: type(feature).__name__ for column, feature in features.items()}
        pictures = [column for column, kind in kinds.items() if kind == "Image"]
        if not pictures:
            raise ValueError(f"Expected a data set with a column of images (got columns {', '.join(kinds)}).")
        self.rows, self.name = rows, name
        masks = [column for column in MASKS if column in pictures[1:]]
        labels = [c for c in LABELS if kinds.get(c) == "ClassLabel"]
        labels += [c for c in LABELS if kinds.get(c) == "Value" and "int" in str(getattr(features[c], "dtype", ""))]
        self._image = "image" if "image" in pictures else pictures[0]
        self._mask = masks[0] if masks else None
        self._label = labels[0] if labels and not masks else None
        self.has_labels, self.has_masks = self._label is not None, self._mask is not None
        self.classes = getattr(features[self._label], "names", None) if self._label else None

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, index: int) -> Any:
        """Returns the image as ``datasets`` decodes it."""
        image = self.rows[index][self._image]
        if image is None:
            raise ValueError("no image in this row")
        return image

    def label(self, index: int) -> int:
        """Returns the label without decoding the image."""
        return self._labels[index]

    def stamp(self, index: int) -> str:
        """Returns the data set's fingerprint and the row number."""
        return f"{getattr(self.rows, '_fingerprint', self.name)} {index}"

    @cached_property
    def _labels(self) -> list[int]:
        return [int(value) for value in self.rows[self._label]]

    def mask(self, index: int) -> Any:
        """Returns the entry of the mask column."""
        return self.rows[index][self._mask]


def find_hub(name: str, split: str = "validation") -> Hub:
    """Loads ``NAME`` or ``NAME:SPLIT``; a folder of ``save_to_disk`` works too.

    Raises:
        ImportError: If ``datasets`` is not installed; names the extra.
        ValueError: If the data set or the split cannot be loaded.
    """
    name, colon, given = name.partition(":")
    split = given if colon else split
    datasets = optional("datasets")
    try:
        if Path(name).is_dir():
            found = datasets.load_from_disk(name)
            rows = found[split] if hasattr(found, "keys") else found
        else:
            with patient_hub():
                rows = datasets.load_dataset(name, split=split)
    except Exception as error:  # hub, cache and scripts raise many kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"Expected a data set that loads (got {name!r}, split {split!r}: {reason}).") from error
    return Hub(rows, f"{name}:{split}")
