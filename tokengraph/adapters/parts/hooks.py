"""Checks that an adapter may compute a module's attention itself: a call of the module would do nothing more."""

from __future__ import annotations

from typing import Any

from torch import nn


def is_called_alone(module: nn.Module) -> bool:
    """Returns whether a call runs the ``forward`` of the module's class and nothing else: no hooks, no pruning.

    Hooks with which transformers itself records outputs do not count.
    """
    added: list[Any] = [module.__dict__["forward"]] if "forward" in module.__dict__ else []
    for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks):
        added += hooks.values()
    return all(_origin(call).startswith("transformers.") for call in added)


def check_called_alone(module: nn.Module, why: str) -> None:
    """Raises ValueError unless :func:`is_called_alone`; ``why`` says why the adapter does not call the module."""
    if not is_called_alone(module):
        raise ValueError(
            f"Expected {type(module).__name__} without hooks, pruning or a forward of its own (got one with some), as "
            f"{why}. Take them off, or put them on the block."
        )


def _origin(call: Any) -> str:
    """Name of the Python module that defines a function; for a partial, the function inside."""
    return getattr(getattr(call, "func", call), "__module__", None) or ""
