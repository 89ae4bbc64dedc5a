"""Finds images in folders: one folder a class, ImageNet's synsets, images without labels, or images with masks."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tokengraph.evaluate.images import Images
from tokengraph.optional import optional

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
MASK_FOLDERS = ("masks", "annotations", "labels")
SYNSET = re.compile(r"n\d{8}$")


class Files(Images):
    """Image files, each with a class or a mask file if the set has them.

    Args:
        root: The folder; keys are paths below it.
        files: Image files.
        labels: Class numbers of the files.
        masks: Mask files of the files.
        classes: Names of the classes.
        notes: Remarks for the report.
    """

    def __init__(
        self,
        root: Path,
        files: Sequence[Path],
        *,
        labels: Sequence[int] | None = None,
        masks: Sequence[Path] | None = None,
        classes: Sequence[str] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        if not files:
            raise ValueError(f"Expected images in {str(root)!r} (got none). Known suffixes: {', '.join(SUFFIXES)}.")
        self.root, self.files, self._labels, self._masks = root, files, labels, masks
        self.name, self.classes, self.notes = root.resolve().name, classes, tuple(notes)
        self.has_labels, self.has_masks = labels is not None, masks is not None

    def __len__(self) -> int:
        return len(self.files)

    def image(self, index: int) -> Any:
        """Opens and decodes the file, so that a broken file raises here."""
        return _read(self.files[index])

    def label(self, index: int) -> int:
        """Returns the class number of the file."""
        assert self._labels is not None
        return self._labels[index]

    def mask(self, index: int) -> Any:
        """Returns pixel values of the mask file; for palettes the indices, not the colours."""
        assert self._masks is not None
        return np.asarray(_read(self._masks[index]))

    def key(self, index: int) -> str:
        """Returns the path below the root, with slashes."""
        return self.files[index].relative_to(self.root).as_posix()

    def stamp(self, index: int) -> str:
        """Returns path, size and modification time of image and mask, so that a changed file counts as new."""
        parts = [self.key(index)]
        for file in (self.files[index], *(() if self._masks is None else (self._masks[index],))):
            try:
                found = file.stat()
                parts.append(f"{found.st_size} {found.st_mtime_ns}")
            except OSError:
                parts.append("-")
        return " ".join(parts)


def find_images(
    root: str | os.PathLike[str], *, labels: str = "auto", synsets: str | os.PathLike[str] | None = None
) -> Files:
    """Finds images below a folder.

    Args:
        root: The folder. Sub-folders ``images`` and ``masks`` (or ``annotations``, ``labels``) hold pairs of files with
            one stem. Other sub-folders are classes, sorted by name. Without sub-folders images have no labels.
        labels: ``"auto"``, or one of these: ``"classes"``, ``"masks"`` or ``"none"`` (all images at any depth).
        synsets: A file with one line a class that begins with the folder's name, as ImageNet's ``synset_words.txt``
            and ``LOC_synset_mapping.txt``. Its line numbers are the class numbers, also if some folders are missing.
            Without it, folders that are all named by synsets get ImageNet-1k's numbers if timm is installed.

    Raises:
        ValueError: If the folder does not exist or has no images, or a class folder is not in the synset file.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise ValueError(
            f"Expected a folder of images (got {str(root)!r}: {'a file' if folder.exists() else 'not there'})."
        )
    if labels not in ("auto", "classes", "masks", "none"):
        raise ValueError(f"Expected labels to be auto, classes, masks or none (got {labels!r}).")
    inside = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    masks = next((name for name in MASK_FOLDERS if name in inside), None)
    if labels == "masks" or (labels == "auto" and "images" in inside and masks is not None):
        return _with_masks(folder, masks)
    if labels == "classes" or (labels == "auto" and inside):
        if folder.joinpath("val").is_dir() and not any(SYNSET.match(name) for name in inside):
            return find_images(folder / "val", labels=labels, synsets=synsets)
        return _with_classes(folder, inside, synsets)
    files, others = _walk(folder)
    return Files(folder, files, notes=_others(others))


def _with_classes(folder: Path, names: list[str], synsets: str | os.PathLike[str] | None) -> Files:
    classes, numbers = _numbered(names, synsets)
    files: list[Path] = []
    labels: list[int] = []
    notes, others = [], 0
    for name, number in zip(names, numbers, strict=True):
        found, other = _walk(folder / name)
        if not found:
            notes.append(f"class folder {name!r} holds no image")
        files += found
        labels += [number] * len(found)
        others += other
    return Files(folder, files, labels=labels, classes=classes, notes=[*notes, *_others(others)])


def _numbered(names: list[str], synsets: str | os.PathLike[str] | None) -> tuple[list[str], list[int]]:
    """Returns all classes, and the class number of each folder."""
    if synsets is not None:
        try:
            lines = Path(synsets).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"Expected a file of synsets, one a line (got {str(synsets)!r}: {error}).") from error
        pairs = [line.strip().split(None, 1) for line in lines if line.strip()]
        order = {pair[0]: i for i, pair in enumerate(pairs)}
        if missing := [name for name in names if name not in order]:
            raise ValueError(f"Expected every folder in {str(synsets)!r} (got {missing[0]!r}, which is not there).")
        return [pair[-1] for pair in pairs], [order[name] for name in names]
    if names and all(SYNSET.match(name) for name in names):
        known = _imagenet()
        if all(name in known for name in names):
            return list(known), [known[name] for name in names]
    return names, list(range(len(names)))


def _imagenet() -> dict[str, int]:
    """Returns the class numbers of ImageNet-1k's synsets; empty without timm."""
    try:
        from tokengraph.compat import timm
    except ImportError:
        return {}
    info = timm.data.ImageNetInfo("imagenet-1k")
    return {name: i for i, name in enumerate(info.label_names())}


def _with_masks(folder: Path, masks: str | None) -> Files:
    if masks is None or not (folder / "images").is_dir():
        raise ValueError(
            f"Expected folders 'images' and one of {', '.join(MASK_FOLDERS)} in {str(folder)!r} (got others)."
        )
    images, others = _walk(folder / "images")
    found, _ = _walk(folder / masks)
    by_stem = {f.relative_to(folder / masks).with_suffix("").as_posix(): f for f in found}
    stems = [f.relative_to(folder / "images").with_suffix("").as_posix() for f in images]
    pairs = [(f, by_stem[s]) for f, s in zip(images, stems, strict=True) if s in by_stem]
    left = len(images) - len(pairs)
    notes = [f"{left} images without a mask of their name are left out"] if left else []
    if not pairs:
        raise ValueError(f"Expected masks named as the images in {str(folder)!r} (got none that fits).")
    return Files(folder, [a for a, _ in pairs], masks=[b for _, b in pairs], notes=[*notes, *_others(others)])


def _walk(folder: Path) -> tuple[list[Path], int]:
    """Returns image files at any depth, sorted by path, and the number of other files, without hidden ones."""
    found, others = [], 0
    for base, inside, names in os.walk(folder):
        inside[:] = sorted(d for d in inside if not d.startswith("."))
        for name in names:
            if name.startswith("."):
                continue
            if name.lower().endswith(SUFFIXES):
                found.append(Path(base) / name)
            else:
                others += 1
    return sorted(found, key=lambda p: p.as_posix()), others


def _others(count: int) -> list[str]:
    return [f"{count} files with other suffixes are not images"] if count else []


def _read(file: Path) -> Any:
    if not file.stat().st_size:
        raise ValueError("empty file")
    with optional("PIL.Image").open(file) as opened:
        opened.load()
        return opened.copy() if getattr(opened, "n_frames", 1) > 1 else opened
