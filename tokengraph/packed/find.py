"""Finds the packed tower of Qwen2-VL, Qwen2.5-VL, Qwen3-VL and their kin by its parts."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

PARTS = ("norm1", "norm2", "attn", "mlp")


def is_packed(module: Any) -> bool:
    """Returns whether the module runs blocks on packed rows, and then merges squares of them."""
    blocks = getattr(module, "blocks", None)
    if not isinstance(blocks, nn.ModuleList) or not len(blocks) or not hasattr(module, "spatial_merge_size"):
        return False
    merges = isinstance(getattr(module, "merger", None), nn.Module) and not hasattr(module, "downsample")
    takes = inspect.signature(type(blocks[0]).forward).parameters
    return merges and "cu_seqlens" in takes and all(hasattr(blocks[0], name) for name in PARTS)


def find_packed(model: nn.Module) -> nn.Module | None:
    """The only packed tower in a model; ``None`` if there is none, or several."""
    found = [module for module in model.modules() if is_packed(module)]
    return found[0] if len(found) == 1 else None


def has_packed(model: nn.Module) -> bool:
    """Returns whether there is exactly one."""
    return isinstance(model, nn.Module) and find_packed(model) is not None


def mergers(tower: Any) -> list[nn.Module]:
    """The modules that read whole squares of rows: the merger, and those of DeepStack layers."""
    return [tower.merger, *getattr(tower, "deepstack_merger_list", ())]
