"""PNG files of packages: opened only where their sides are in range, by the file's header."""

from __future__ import annotations

import struct
from pathlib import Path

from PIL import Image


def png_size(path: Path) -> tuple[int, int]:
    """Width and height as the header says; (0, 0) for a file that is no PNG.

    Pillow refuses to open the largest ones, which are flags of hundreds of millions of pixels.
    """
    with path.open("rb") as file:
        header = file.read(24)
    if header[:8] != b"\x89PNG\r\n\x1a\n" or len(header) < 24:
        return 0, 0
    width, height = struct.unpack(">II", header[16:24])
    return width, height


def open_png(path: Path, smallest: int, largest: int) -> Image.Image | None:
    """The picture, read whole as RGBA; ``None`` where a side is below ``smallest`` or above ``largest`` pixels."""
    size = png_size(path)
    if min(size) < smallest or max(size) > largest:
        return None
    with Image.open(path) as image:
        return image.convert("RGBA")
