"""Lets a model run on smaller images while a strategy is attached: scales images and resamples positions."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokengraph.adapters.base import Adapter
from tokengraph.attach.changes import Change, Hook
from tokengraph.attach.site import Mark

OWN_TABLES = ("torchvision", "open_clip")  # libraries whose position tables fit one size; the tables are swapped here


class ScaleImages:
    """A forward pre-hook that scales images ``[B, 3, H, W]`` to ``[B, 3, size, size]``, bicubic with antialiasing.

    Args:
        size: Side in pixels.
        ask: True to ask a transformers model to resample its positions.
    """

    of_tokengraph = True

    def __init__(self, size: int, ask: bool = False) -> None:
        self.size, self.ask = size, ask

    def __call__(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Scales the first argument that is a batch of images."""
        kwargs = {k: self._scaled(v) for k, v in kwargs.items()}
        if self.ask:
            kwargs["interpolate_pos_encoding"] = True
        return tuple(self._scaled(v) for v in args), kwargs

    def _scaled(self, value: Any) -> Any:
        square = (self.size, self.size)
        if not isinstance(value, Tensor) or value.dim() != 4 or tuple(value.shape[-2:]) == square:
            return value
        if not value.is_floating_point():
            return value
        wide = value if value.dtype == torch.float64 else value.float()
        return F.interpolate(wide, size=square, mode="bicubic", antialias=True, align_corners=False).to(value.dtype)


def resizable(core: Any, adapter: Adapter) -> bool:
    """Returns whether :func:`resize_changes` can make a model take square images of another size."""
    grid = adapter.grid(core)
    if len(grid) != 2 or grid[0] != grid[1]:
        return False
    origin = _origin(core)
    if "timm" in origin:
        return hasattr(core, "dynamic_img_size") and hasattr(adapter.embedding(core), "strict_img_size")
    if "transformers" in origin:
        return _asks(adapter.embedding(core)) or _dinov2(core)
    return any(name in origin for name in OWN_TABLES)


def resize_changes(core: Any, adapter: Adapter, size: int, mark: Mark) -> list[Change]:
    """Lists the changes that make a model scale its images to ``size`` pixels and resample its positions.

    Parameters and state_dict keys stay; the position tables of torchvision and open_clip have another shape meanwhile.

    Args:
        core: The supported model.
        adapter: Its adapter.
        size: Side of the scaled images, a multiple of the patch size.
        mark: The attachment's mark.

    Raises:
        ValueError: If positions of this model cannot be resampled.
    """
    if not resizable(core, adapter):
        raise ValueError(
            f"Expected a model with a square grid whose positions can be resampled (got {type(core).__name__}). "
            "Make a plan with resolution=False."
        )
    embedding: Any = adapter.embedding(core)
    origin = _origin(core)
    if "torchvision" in origin:
        side = size // core.patch_size
        table = nn.Parameter(resample_table(core.encoder.pos_embedding.detach(), side), requires_grad=False)
        values = {"image_size": size, "seq_length": side * side + 1}
        hook = Hook(core, ScaleImages(size), before=True, with_kwargs=True)
        return [
            Change(core, mark, hooks=[hook], values=values),
            Change(core.encoder, mark, values={"pos_embedding": table}),
        ]
    hook = Hook(embedding, ScaleImages(size, _asks(embedding)), before=True, with_kwargs=True)
    changes = [Change(embedding, mark, hooks=[hook])]
    if "open_clip" in origin:
        side = size // int(embedding.stride[0])
        table = nn.Parameter(resample_table(core.positional_embedding.detach(), side), requires_grad=False)
        values = {"positional_embedding": table, "image_size": (size, size), "grid_size": (side, side)}
        changes.append(Change(core, mark, values=values))
    elif "timm" in origin and not core.dynamic_img_size:
        fmt = type(embedding.output_fmt)("NHWC")
        changes[0].values.update(strict_img_size=False, flatten=False, output_fmt=fmt)
        changes.append(Change(core, mark, values={"dynamic_img_size": True}))
    return changes


def _origin(core: object) -> set[str]:
    return {c.__module__.partition(".")[0] for c in type(core).__mro__}


def _asks(embedding: nn.Module) -> bool:
    return "interpolate_pos_encoding" in inspect.signature(type(embedding).forward).parameters


def _dinov2(core: object) -> bool:
    return any(name in type(core).__module__ for name in ("dinov2", "dinov3"))


def resample_table(table: Tensor, side: int) -> Tensor:
    """Resamples positions ``[..., 1 + H*W, C]`` to ``[..., 1 + side*side, C]``."""
    flat = table.reshape(-1, table.size(-1))
    old = round((flat.size(0) - 1) ** 0.5)
    grid = flat[1:].T.reshape(1, -1, old, old).float()
    new = F.interpolate(grid, size=(side, side), mode="bicubic", antialias=True, align_corners=False)
    rows = torch.cat([flat[:1], new[0].flatten(1).T.to(flat.dtype)])
    return rows.reshape(*table.shape[:-2], -1, table.size(-1))
