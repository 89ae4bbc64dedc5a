"""The image preprocessing of a checkpoint: size, crop, interpolation, mean and standard deviation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from tokengraph.adapters.base import Adapter
from tokengraph.evaluate.own import find_own
from tokengraph.io.mean_std import IMAGENET, Triple, find_mean_std

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
CROPS = ("center", "squash", "border")


@dataclass(frozen=True)
class DataConfig:
    """The preprocessing of a checkpoint.

    Args:
        size: Side of the model's square input, in pixels.
        mean: Mean of each channel, for images in [0, 1].
        std: Standard deviation of each channel.
        interpolation: One of Pillow's filters, by name.
        crop_pct: The share of the resized image's shorter side that the central crop keeps.
        crop_mode: ``"center"``: resize the shorter side, cut the centre out. ``"squash"``: resize both sides to the
            square first. ``"border"``: resize the longer side, pad with the mean of each channel.
        source: A description of its origin, for reports.

    Raises:
        ValueError: For a size below 1, an unknown filter or crop, or a share outside (0, 1].
    """

    size: int
    mean: Triple = IMAGENET[0]
    std: Triple = IMAGENET[1]
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    crop_mode: str = "center"
    source: str = "given"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"Expected images of at least 1 pixel (got size={self.size}).")
        if not 0 < self.crop_pct <= 1:
            raise ValueError(f"Expected crop_pct in (0, 1] (got {self.crop_pct}).")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"Expected interpolation: {', '.join(INTERPOLATIONS)} (got {self.interpolation!r}).")
        if self.crop_mode not in CROPS:
            raise ValueError(f"Expected crop_mode: {', '.join(CROPS)} (got {self.crop_mode!r}).")

    def at(self, size: int | None) -> DataConfig:
        """Returns the same field of view at another size; ``None`` keeps the size."""
        return self if size is None else replace(self, size=size)

    def describe(self) -> str:
        """Returns one line for reports."""
        crop = f"crop {self.crop_pct:g}" if self.crop_mode == "center" else self.crop_mode
        return f"{self.size} px, {self.interpolation}, {crop}, mean {self.mean}, std {self.std} ({self.source})"


def of_timm(config: Mapping[str, Any], source: str = "timm's pretrained_cfg") -> DataConfig:
    """Converts the result of ``timm.data.resolve_model_data_config`` to a :class:`DataConfig`.

    Raises:
        ValueError: If the images are not square or do not have three channels.
    """
    channels, height, width = config["input_size"]
    if height != width or channels != 3:
        raise ValueError(f"Expected a model of square images with 3 channels (got {channels} x {height} x {width}).")
    mean, std = (tuple(float(v) for v in config[key]) for key in ("mean", "std"))
    return DataConfig(
        size=int(height),
        mean=mean,  # type: ignore[arg-type]
        std=std,  # type: ignore[arg-type]
        interpolation=str(config["interpolation"]),
        crop_pct=float(config["crop_pct"]),
        crop_mode=str(config.get("crop_mode") or "center"),
        source=source,
    )


def config_of_model(model: nn.Module, adapter: Adapter | None = None) -> DataConfig:
    """Reads a model's preprocessing: timm's config, or size, mean and standard deviation of any supported model.

    Args:
        model: The model.
        adapter: For a model of a user's own.

    Raises:
        ValueError: If the model's image size cannot be found; give a :class:`DataConfig`.
    """
    if any(c.__module__.startswith("timm.") for c in type(model).__mro__):
        from tokengraph.compat import timm

        found = dict(timm.data.resolve_model_data_config(model))
        if (own := _grid_size(model)) is not None:  # timm's config ignores an image size given to create_model
            found["input_size"] = (3, own, own)
        return of_timm(found)
    size = _size(model, adapter)
    if size is None:
        raise ValueError(
            f"Expected a model with a known image size (got {type(model).__name__}). Give Source(name, build, "
            "DataConfig(size=...)) of tokengraph.evaluate; build(size) returns the model."
        )
    mean, std = find_mean_std(model)
    return DataConfig(size, mean, std, source=f"found in {type(model).__name__}; no crop, bicubic")


def _grid_size(model: Any) -> int | None:
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    return int(size[0]) if isinstance(size, tuple | list) and size[0] == size[1] else None


def _size(model: nn.Module, own: Adapter | None) -> int | None:
    """Returns the side of the images from the config or module, or as patch grid times patch size."""
    for module in model.modules():
        for holder in (getattr(module, "config", None), module):
            size = getattr(holder, "image_size", None)
            size = size[0] if isinstance(size, tuple | list) and len(set(size)) == 1 else size
            if isinstance(size, int) and not isinstance(size, bool):
                return size
    try:
        core, adapter = find_own(model, own)
        grid = adapter.grid(core)
    except ValueError:
        return None
    patch: Any = getattr(adapter.embedding(core), "patch_size", None)
    patch = patch[0] if isinstance(patch, tuple | list) else patch
    return grid[0] * patch if isinstance(patch, int) and len(grid) == 2 and grid[0] == grid[1] else None
