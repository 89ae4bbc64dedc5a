"""Says where code may read the values of a tensor: in eager mode on CPU, but not compiled or under ``torch.func``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

_functorch: Any = getattr(torch._C, "_functorch", None)


def may_look(x: Tensor) -> bool:
    """True if reading the values of ``x`` is free and allowed: on CPU, not compiled, not under ``torch.func.vmap``.

    Cost: well below a microsecond.
    """
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and not under_vmap()


def may_write(x: Tensor) -> bool:
    """True if code may write into new tensors in place: eagerly, without tracing or transforms of ``torch.func``."""
    return type(x) is Tensor and not torch.compiler.is_compiling() and not transforming()


def under_vmap() -> bool:
    """True if a ``torch.func.vmap`` is active, at any depth of transforms."""
    if not transforming():
        return False
    return any(level.key() == _functorch.TransformType.Vmap for level in _functorch.get_interpreter_stack())


def transforming() -> bool:
    """True if any transform of ``torch.func`` is active: ``grad``, ``vmap``, ``jvp`` and their relatives."""
    return _functorch is not None and _functorch.peek_interpreter_stack() is not None


def may_differentiate(x: Tensor) -> bool:
    """True if derivatives may pass through ``x``: by autograd, forward mode or a transform."""
    if torch.is_grad_enabled() and x.requires_grad:
        return True
    return not torch.compiler.is_compiling() and (transforming() or forward_ad.unpack_dual(x).tangent is not None)
