"""Attention that an adapter computes in place of a module: only where calling the module would do nothing else."""

from __future__ import annotations

from typing import Any

from torch import nn


def is_called_alone(module: nn.Module) -> bool:
    """Whether a call runs the ``forward`` of the module's class and nothing else: no hooks, no pruning.

    What transformers puts there by itself, to record outputs, does not count.
    """
    added: list[Any] = [module.__dict__["forward"]] if "forward" in module.__dict__ else []
    for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks):
        added += hooks.values()
    return all(_origin(call).startswith("transformers.") for call in added)


def check_called_alone(module: nn.Module, why: str) -> None:
    """Raises ValueError unless it is; ``why`` says why the module is not called."""
    if not is_called_alone(module):
        raise ValueError(
            f"Expected {type(module).__name__} without hooks, pruning or a forward of its own (got one with some), as "
            f"{why}. Take them off, or put them on the block."
        )


def _origin(call: Any) -> str:
    """The module that a function, or what a partial one calls, is written in."""
    return getattr(getattr(call, "func", call), "__module__", None) or ""
