"""openclipart: drawings in 16 classes by folder, without near-duplicates, split by series of file names."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from tokengraph.evaluate.images import Arrays
from truth.pictures import open_png

ROOT = Path("unpacked/usr/share/openclipart/png")
SIDE, SMALLEST, LARGEST = 224, 64, 6000  # pixels: output side; least shorter side and largest longer side of a file
CLASSES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # folders, and excluded folders inside them
    "animal": (("animals",), ()),
    "food": (("food",), ()),
    "person": (("people",), ("people/smilies",)),
    "vehicle": (("transportation",), ("transportation/aiga-symbols", "transportation/roadsigns")),
    "plant": (("plants",), ()),
    "building": (("buildings",), ()),
    "tool": (("tools",), ()),
    "office": (("office",), ()),
    "music": (("recreation/music",), ()),
    "sport": (("recreation/sports",), ()),
    "toy or game": (("recreation/toys", "recreation/games"), ("recreation/games/cards",)),
    "playing card": (("recreation/games/cards",), ()),
    "flag": (("signs_and_symbols/flags",), ()),
    "map": (("geography",), ()),
    "road sign": (("transportation/roadsigns",), ()),
    "hardware": (("computer/hardware", "electronics"), ()),
}


def series(name: str) -> str:
    """Returns the part of a file name that its series shares: the letters, without numbers.

    Example:
        >>> series("dog_drawn_with_strai_02.png"), series("rana01_architetto_01.png")
        ('dog drawn with strai', 'rana architetto')
    """
    return re.sub(r"[^a-z]+", " ", Path(name).stem.lower()).strip()


def in_test(name: str) -> bool:
    """Returns whether a file's whole series is for the test: half of all series, by a hash."""
    return hashlib.sha256(series(name).encode()).digest()[0] % 2 == 1


def letterbox(image: Image.Image, side: int) -> np.ndarray:
    """Fits the whole picture onto a white square, ``[side, side, 3]`` uint8."""
    image = image.convert("RGBA")
    scale = side / max(image.size)
    image = image.resize([max(1, round(length * scale)) for length in image.size], Image.Resampling.BICUBIC)
    ground = Image.new("RGBA", (side, side), (255, 255, 255, 255))
    ground.alpha_composite(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(ground.convert("RGB"))


def fingerprint(picture: np.ndarray) -> bytes:
    """Returns bytes that are equal for near-duplicates: brightness steps in an 8 x 8 grid, and four coarse colours."""
    image = Image.fromarray(picture)
    grey = np.asarray(image.convert("L").resize((9, 8)))
    colours = np.asarray(image.resize((2, 2))) // 32
    return (grey[:, 1:] > grey[:, :-1]).tobytes() + colours.tobytes()


def files(root: Path) -> Iterator[tuple[int, Path]]:
    """Yields ``(class, file)`` of every picture in the classes' folders, in a fixed order."""
    for number, (folders, without) in enumerate(CLASSES.values()):
        for folder in folders:
            for path in sorted((root / folder).rglob("*.png")):
                place = path.parent.relative_to(root).as_posix()
                if not any(place == out or place.startswith(out + "/") for out in without):
                    yield number, path


def build(root: Path, side: int = SIDE) -> dict[str, np.ndarray]:
    """Returns pictures ``[N, side, side, 3]``, labels and names, without too small, blank and duplicate ones."""
    pictures, labels, names, seen = [], [], [], set()
    for label, path in files(root):
        image = open_png(path, SMALLEST, LARGEST)
        if image is None:
            continue
        picture = letterbox(image, side)
        print_ = fingerprint(picture)
        if print_ in seen or picture.std() < 4:
            continue
        seen.add(print_)
        pictures.append(picture)
        labels.append(label)
        names.append(path.relative_to(root).as_posix())
    if not pictures:
        raise FileNotFoundError(f"Expected pictures under {root} (got none). Fetch openclipart-png first.")
    return {"pictures": np.stack(pictures), "labels": np.array(labels), "names": np.array(names)}


def clipart(folder: Path) -> tuple[Arrays, Arrays]:
    """Returns training and test pictures; cached in ``folder/cache``."""
    file = folder / "cache" / f"clipart-{SIDE}.npz"
    if not file.exists():
        made = build(folder / ROOT)
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file.with_suffix(".part.npz"), **made)
        file.with_suffix(".part.npz").replace(file)
    with np.load(file) as found:
        pictures, labels, names = found["pictures"], found["labels"], [str(n) for n in found["names"]]
    test = np.array([in_test(name) for name in names])

    def part(chosen: np.ndarray, name: str) -> Arrays:
        named = [n for n, take in zip(names, chosen, strict=True) if take]
        return Arrays(pictures[chosen], labels[chosen], name=name, classes=list(CLASSES), names=named)

    return part(~test, "openclipart (training)"), part(test, "openclipart")
