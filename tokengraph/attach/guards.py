"""What stands before every planner: models that have been changed in a way that no strategy gets through."""

from __future__ import annotations

from torch import nn

from tokengraph.adapters.coarse import SITE
from tokengraph.attach.planner import Found


def check_untouched(model: nn.Module, found: Found) -> None:
    """Raises ValueError if the model has a strategy, or was wrapped, sharded or hooked where one is to be put in.

    Args:
        model: The model that ``attach`` was given.
        found: Where in it the strategy is going to act; what stands beside that may be wrapped.
    """
    core = found.core
    if any(SITE in m.__dict__ for m in model.modules()):
        raise ValueError("Expected a model without a strategy (got one that is attached). Call remove() first.")
    if any(isinstance(m, nn.DataParallel) and any(c is core for c in m.modules()) for m in model.modules()):
        raise ValueError(
            "Expected a model that is not in nn.DataParallel (got one): its replicas would share one record. "
            "Use DistributedDataParallel."
        )
    if any(type(p).__name__ == "DTensor" for p in core.parameters()):
        raise ValueError("Expected a model that is not sharded yet (got one). Attach first, then fully_shard.")
    if any(type(m).__name__ == "CheckpointWrapper" for m in core.modules()):
        raise ValueError("Expected blocks that are not wrapped yet (got CheckpointWrapper). Attach first, then wrap.")
    if len({id(b) for b in found.blocks}) < len(found.blocks):
        raise ValueError("Expected blocks that are all their own (got a block that stands in the model twice).")
    for index, block in enumerate(found.blocks):
        _check_forward(block, "blocks whose forward is that of their class", f"block {index}")
    if found.decides:
        _check_forward(core, "a stage whose forward is that of its class", "it,")


def _check_forward(module: nn.Module, wanted: str, place: str) -> None:
    """Raises unless a module runs by the ``forward`` of its class, which is what a strategy gets in by."""
    if "forward" in module.__dict__:
        raise ValueError(
            f"Expected {wanted} (got another, put on {place} of class {type(module).__name__}, as accelerate's hooks "
            "do). Attach first, then dispatch or hook; or take the hooks off: "
            "accelerate.hooks.remove_hook_from_module(model, recurse=True)."
        )
