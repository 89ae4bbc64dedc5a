"""Keeps the outputs of parts of a block for the strategy to read."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tokengraph.adapters.base import Adapter
from tokengraph.adapters.coarse import KEPT


class KeptOutput:
    """Forward hook that keeps a module's output on its block, for the strategy to read.

    The hook holds a reference to the block: quantization replaces modules and moves only their hooks.
    """

    of_tokengraph = True

    def __init__(self, block: nn.Module, name: str) -> None:
        self.block, self.name = block, name

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> None:
        """Stores the output if the block asked for it."""
        kept = self.block.__dict__.get(KEPT)
        if kept is not None:
            kept[self.name] = output


def parts_to_read(block: nn.Module, adapter: Adapter, reads: str) -> dict[str, nn.Module]:
    """The parts of a block whose outputs a strategy reads, by name; none if it reads the map, or nothing."""
    if reads == "norm":
        return {"norm": adapter.norms(block)[0]}
    return adapter.kept(block) if reads in ("keys", "class", "map+keys") else {}


def keep_outputs(block: nn.Module, parts: dict[str, nn.Module]) -> None:
    """Adds missing hooks to ``parts`` of a block that the strategy reads; they may be replaced between two runs."""
    for name, module in parts.items():
        hooks = module._forward_hooks.values()
        if not any(isinstance(hook, KeptOutput) and hook.block is block for hook in hooks):
            module.register_forward_hook(KeptOutput(block, name))
