"""A photograph as a model wants it: one that the user gives, or one that scikit-image ships."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokengraph.optional import optional

SHIPPED = ("coffee.png", "chelsea.png", "astronaut.png", "rocket.jpg")  # in scikit-image's wheel: nothing to download


def find_photo(path: str | Path | None = None) -> Path:
    """The file at ``path``; without one, a photograph inside the installed scikit-image.

    Raises:
        ValueError: If there is no file at ``path``.
        ImportError: If neither a path is given nor scikit-image is installed.
    """
    if path is not None:
        if not Path(path).is_file():
            raise ValueError(f"Expected the path of an image file (got {str(path)!r}: no such file).")
        return Path(path)
    spec = find_spec("skimage")
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    for name in SHIPPED:
        for folder in folders:
            if (Path(folder) / "data" / name).is_file():
                return Path(folder) / "data" / name
    raise ImportError(
        "Expected scikit-image with its photographs to be installed (got none). "
        "Give the path of an image, or install it with: pip install 'tokengraph[viz]'"
    )


def load_photo(path: str | Path | None = None, size: int = 448) -> Tensor:
    """Loads a photograph, scales its shorter side and cuts the centre out.

    Args:
        path: An image file; ``None`` takes one that scikit-image ships.
        size: S, the side of the square in pixels.

    Returns:
        ``[3, S, S]`` float32 in [0, 1], not normalised.

    Raises:
        ValueError: If the file is missing or no image.
        ImportError: If Pillow is not installed; names the extra to install.
    """
    if size < 1:
        raise ValueError(f"Expected size >= 1 pixels (got size={size}).")
    file, pillow, operations = find_photo(path), optional("PIL.Image"), optional("PIL.ImageOps")
    try:
        with pillow.open(file) as opened:
            upright = operations.exif_transpose(opened).convert("RGB")
    except (OSError, SyntaxError) as error:
        raise ValueError(f"Expected an image file that Pillow can read (got {str(file)!r}: {error}).") from error
    fitted = operations.fit(upright, (size, size), method=pillow.Resampling.LANCZOS)
    pixels = torch.frombuffer(bytearray(fitted.tobytes()), dtype=torch.uint8)
    return pixels.view(size, size, 3).permute(2, 0, 1).float() / 255


def normalize(photo: Tensor, model: nn.Module) -> Tensor:
    """Applies the model's own mean and deviation to ``[3, H, W]`` and adds the batch: ``[1, 3, H, W]``.

    Models without a ``pretrained_cfg`` get mean and deviation 0.5.
    """
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    mean, std = (torch.tensor(config.get(key) or (0.5,) * 3).view(3, 1, 1) for key in ("mean", "std"))
    return ((photo - mean) / std)[None]
