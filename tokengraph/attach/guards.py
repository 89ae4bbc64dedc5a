"""Checks before every planner: refuses models that were wrapped, sharded or hooked so that no strategy can act."""

from __future__ import annotations

from torch import nn

from tokengraph.adapters.coarse import SITE
from tokengraph.attach.planner import Found


def check_untouched(model: nn.Module, found: Found) -> None:
    """Raises ValueError if the model is already attached, or its blocks were wrapped, sharded or hooked.

    Args:
        model: The user's model.
        found: The part of it in which the strategy will act; other parts may be wrapped.
    """
    core = found.core
    if any(SITE in m.__dict__ for m in model.modules()):
        raise ValueError("Expected a model without a strategy (got an attached one). Call remove() first.")
    if any(isinstance(m, nn.DataParallel) and any(c is core for c in m.modules()) for m in model.modules()):
        raise ValueError(
            "Expected a model outside nn.DataParallel (got one inside). Its replicas would share one record. "
            "Use DistributedDataParallel."
        )
    if any(type(p).__name__ == "DTensor" for p in core.parameters()):
        raise ValueError("Expected an unsharded model (got a sharded one). Attach first, then fully_shard.")
    if any(type(m).__name__ == "CheckpointWrapper" for m in core.modules()):
        raise ValueError("Expected blocks that are not wrapped yet (got CheckpointWrapper). Attach first, then wrap.")
    if len({id(b) for b in found.blocks}) < len(found.blocks):
        raise ValueError("Expected distinct blocks (got a model that uses one block twice).")
    for index, block in enumerate(found.blocks):
        _check_forward(block, "blocks whose forward is that of their class", f"block {index}")
    if found.decides:
        _check_forward(core, "a stage whose forward is that of its class", "it,")


def _check_forward(module: nn.Module, wanted: str, place: str) -> None:
    """Raises unless a module runs the ``forward`` of its class, which attaching overrides in a subclass."""
    if "forward" in module.__dict__:
        raise ValueError(
            f"Expected {wanted} (got another, put on {place} of class {type(module).__name__}, as accelerate's hooks "
            "do). Attach first, then dispatch or hook; or remove the hooks: "
            "accelerate.hooks.remove_hook_from_module(model, recurse=True)."
        )
