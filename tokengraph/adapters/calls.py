"""Attention that an adapter computes in place of a module: only where calling the module would do nothing else."""

from __future__ import annotations

from torch import nn


def is_called_alone(module: nn.Module) -> bool:
    """Whether a call runs the ``forward`` of the module's class and nothing else: no hooks, no pruning."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return "forward" not in module.__dict__ and not any(hooks)


def check_called_alone(module: nn.Module, why: str) -> None:
    """Raises ValueError unless it is; ``why`` says why the module is not called."""
    if not is_called_alone(module):
        raise ValueError(
            f"Expected {type(module).__name__} without hooks, pruning or a forward of its own (got one with some), as "
            f"{why}. Take them off, or put them on the block."
        )
