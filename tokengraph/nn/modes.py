"""Context managers that change the mode of a module or of torch; and tests for a running backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

HOOKS = "_forward_hooks", "_forward_pre_hooks"


@contextmanager
def in_eval(module: nn.Module) -> Iterator[None]:
    """Puts a module into eval mode; at the end, each submodule gets its own mode back."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Lets a module run without side effects: restores its buffers, and calls no hooks on it or its submodules."""
    parts = list(module.modules())
    buffers = [(m._buffers, name, b, b.clone()) for m in parts for name, b in m._buffers.items() if b is not None]
    hooks = [(m.__dict__, name, m.__dict__[name]) for m in parts for name in HOOKS]
    try:
        for owner, name, kept in hooks:
            owner[name] = type(kept)()
        yield
    finally:
        for owner, name, kept in hooks:
            owner[name] = kept
        for owner, name, buffer, value in buffers:
            owner[name] = buffer
            if not torch.equal(buffer, value):
                with torch.no_grad(), torch.inference_mode(buffer.is_inference()):
                    buffer.copy_(value)


@contextmanager
def precise(device: torch.device) -> Iterator[None]:
    """Runs operations in the dtype of their inputs: no autocast, and float32 products in full float32."""
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def backward_task() -> int:
    """Returns the id of the backward pass that runs in this thread, -1 if none does."""
    return -1 if torch.compiler.is_compiling() else torch._C._current_graph_task_id()


def in_backward() -> bool:
    """True if a backward pass runs in this thread; a block that runs then is recomputed by checkpointing."""
    return backward_task() != -1
