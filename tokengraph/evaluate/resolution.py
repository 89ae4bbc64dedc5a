"""Adapts a model to another input size by resampling its position tables in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tokengraph.adapters.base import Adapter
from tokengraph.attach.resize import resample_table
from tokengraph.evaluate.own import find_own


def resized(model: nn.Module, size: int, own: Adapter | None = None) -> nn.Module:
    """Makes a model take square images of ``size`` pixels, in place.

    timm's models have ``set_input_size``. Models of transformers resample in each run, by an argument that a hook sets.
    The tables of torchvision and open_clip are resampled here, bicubic with antialiasing.

    Args:
        model: Any supported model, not attached.
        size: A multiple of its patch size.
        own: The adapter of a model of a user's own.

    Returns:
        The same module.

    Raises:
        ValueError: If the size is no multiple of the patch size, or positions of this model cannot be resampled.
    """
    found, adapter = find_own(model, own)
    core: Any = found
    embedding: Any = adapter.embedding(core)
    patch = _patch(embedding)
    if patch is not None and (size % patch or size < patch):
        near = max(1, round(size / patch)) * patch
        raise ValueError(
            f"Expected a resolution that is a multiple of the patch size {patch} (got {size}). Try {near}."
        )
    origin = {c.__module__.partition(".")[0] for c in type(core).__mro__}
    if hasattr(core, "set_input_size"):
        core.set_input_size(img_size=size)
    elif "transformers" in origin:
        _in_each_run(model, core)
    elif "torchvision" in origin or "open_clip" in origin:
        _resample(core, size, size // (patch or 1))
    elif not getattr(core, "dynamic_img_size", False) and "timm" in origin:
        raise ValueError(f"Expected a model whose positions can be resampled (got {type(core).__name__}).")
    return model


def _patch(embedding: Any) -> int | None:
    for holder in (embedding, *embedding.modules()):
        size = getattr(holder, "patch_size", None)
        size = size[0] if isinstance(size, tuple | list) else size
        if isinstance(size, int):
            return size
    first = next((m for m in embedding.modules() if isinstance(m, nn.Conv2d)), None)
    return None if first is None else int(first.stride[0])


class _Resampling:
    """A hook that asks transformers to resample positions; a module-level class, so that copies keep it."""

    def __call__(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {"interpolate_pos_encoding": True, **kwargs}


def _in_each_run(model: nn.Module, core: nn.Module) -> None:
    import inspect

    if "interpolate_pos_encoding" in inspect.signature(type(model).forward).parameters:
        model.register_forward_pre_hook(_Resampling(), with_kwargs=True)
    elif "dinov2" not in type(core).__module__ and "dinov3" not in type(core).__module__:
        raise ValueError(f"Expected a model whose positions can be resampled (got {type(model).__name__}).")


def _resample(core: Any, size: int, side: int) -> None:
    """Resamples the tables of torchvision and open_clip."""
    if hasattr(core, "positional_embedding"):
        table, owner, name = core.positional_embedding, core, "positional_embedding"
        core.image_size, core.grid_size = (size, size), (side, side)
    else:
        table, owner, name = core.encoder.pos_embedding, core.encoder, "pos_embedding"
        core.image_size = size
        core.seq_length = side * side + 1
    with torch.no_grad():
        setattr(owner, name, nn.Parameter(resample_table(table.detach(), side), requires_grad=table.requires_grad))
