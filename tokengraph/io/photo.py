"""Loads a photograph, the user's or one that scikit-image ships, and normalises it for a model."""

from __future__ import annotations

from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tokengraph.io.mean_std import find_mean_std, input_channels
from tokengraph.io.pixels import to_light
from tokengraph.optional import optional

SHIPPED = ("coffee.png", "chelsea.png", "astronaut.png", "rocket.jpg")  # in scikit-image's wheel: nothing to download
ORIENTATION = 274  # EXIF tag
TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # maps its values to those of Pillow's Image.Transpose
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow weighs red, green and blue


def find_photo(path: str | PathLike[str] | None = None) -> Path:
    """Returns ``path``, or without one the path of a photograph inside the installed scikit-image.

    Raises:
        TypeError: If ``path`` is no path.
        ValueError: If there is no file at ``path``.
        ImportError: If no path is given and scikit-image is not installed.
    """
    if path is not None:
        return _existing(path)
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


def _existing(path: str | PathLike[str]) -> Path:
    if not isinstance(path, str | PathLike):
        raise TypeError(f"Expected the path of an image file (got {type(path).__name__}).")
    try:
        mode = Path(path).stat().st_mode
        reason = "" if S_ISREG(mode) else "a folder" if S_ISDIR(mode) else "no regular file"
    except FileNotFoundError:
        reason = "no such file"
    except (OSError, ValueError) as error:  # no permission, a name too long, a NUL in it
        reason = getattr(error, "strerror", None) or str(error)
    if reason:
        raise ValueError(f"Expected the path of an image file (got {str(path)!r}: {reason}).")
    return Path(path)


def load_photo(path: str | PathLike[str] | None = None, size: int = 448) -> Tensor:
    """Loads a photograph, scales its shorter side to ``size`` and crops the centre.

    It applies the EXIF orientation, puts transparent pixels on white, and takes the first frame or page of a file. It
    scales pixels of more than 8 bits by the range of the file's type, or else of the data: see
    :func:`tokengraph.io.pixels.to_light`. It ignores colour profiles.

    Args:
        path: An image file; ``None`` takes one that scikit-image ships.
        size: S, the side of the square in pixels.

    Returns:
        ``[3, S, S]`` float32 in [0, 1], not normalised.

    Raises:
        TypeError: If ``path`` is no path, or ``size`` no whole number.
        ValueError: If the file is missing, is no image or a broken one, has more pixels than Pillow allows, or holds
            NaN.
        ImportError: If Pillow is not installed; names the extra to install.

    Cost: decoding and scaling of the whole image, on the CPU.
    """
    if isinstance(size, bool) or not hasattr(size, "__index__"):
        raise TypeError(f"Expected size as a whole number of pixels (got {size!r}).")
    if size < 1:
        raise ValueError(f"Expected size >= 1 pixels (got size={size}).")
    light, side = _upright(find_photo(path)), int(size)
    method = optional("PIL.Image").Resampling.LANCZOS
    fitted = optional("PIL.ImageOps").fit(light, (side, side), method=method)
    pixels = torch.from_numpy(np.array(fitted, dtype=np.float32))
    if pixels.dim() == 2:
        return pixels.clamp(0, 1).expand(3, side, side).contiguous()  # LANCZOS overshoots at edges
    return pixels.permute(2, 0, 1).contiguous() / 255


def _upright(file: Path) -> Any:
    """Opens an image file, applies its orientation, and returns it as ``"RGB"`` or ``"F"``."""
    pillow = optional("PIL.Image")
    try:
        with pillow.open(file) as opened:
            opened.load()
            image, turn = to_light(opened), TURNS.get(_orientation(opened))
    except pillow.DecompressionBombError as error:
        raise ValueError(
            f"Expected an image that Pillow takes for safe to open (got {str(file)!r}: {str(error).rstrip('.')}). "
            "Make it smaller or, if you trust it, set PIL.Image.MAX_IMAGE_PIXELS = None."
        ) from error
    except Exception as error:  # broken files raise anything: struct.error, SyntaxError, KeyError, ...
        reason = str(error).rstrip(".") or type(error).__name__
        raise ValueError(f"Expected an image file that Pillow can read (got {str(file)!r}: {reason}).") from error
    return image if turn is None else image.transpose(pillow.Transpose(turn))


def _orientation(image: Any) -> Any:
    try:
        return image.getexif().get(ORIENTATION)
    except Exception:  # unreadable tags mean no rotation
        return None


def normalize(photo: Tensor, model: nn.Module, *, processor: Any = None) -> Tensor:
    """Applies the model's own mean and deviation to ``[3, H, W]`` and adds the batch: ``[1, 3, H, W]``.

    They come from ``processor`` or, without one, from the model: see :func:`tokengraph.io.mean_std.find_mean_std`. For
    a model of one channel it returns luma, ``[1, 1, H, W]``, and averages mean and deviation over channels.

    Args:
        photo: ``[3, H, W]`` in [0, 1], as :func:`load_photo` returns it.
        model: Any model, or a wrapper around one.
        processor: An image processor of transformers, or a dict with ``mean`` and ``std``; if given, it decides.

    Returns:
        ``[1, 3, H, W]``, or ``[1, 1, H, W]``, on the device of ``photo``.

    Cost: two passes over the photograph; without ``processor`` also a look at small files of transformers models.

    Raises:
        ValueError: If ``photo`` has another shape, the model takes neither 1 nor 3 channels, or it contains several
            models that disagree.
        TypeError: If ``processor`` has no mean and deviation.
    """
    if photo.dim() != 3 or photo.size(0) != 3:
        raise ValueError(f"Expected a photo of shape [3, H, W] (got {list(photo.shape)}).")
    channels = input_channels(model)
    if channels not in (1, 3):
        raise ValueError(f"Expected a model for 1 or 3 channels (got one for {channels}). Normalise by hand.")
    mean, std = (torch.tensor(v, dtype=torch.float32).view(3, 1, 1) for v in find_mean_std(model, processor))
    if channels == 1:
        photo = (photo * photo.new_tensor(LUMA).view(3, 1, 1)).sum(0, keepdim=True)
        mean, std = mean.mean(0, keepdim=True), std.mean(0, keepdim=True)
    return ((photo - mean.to(photo)) / std.to(photo))[None]
