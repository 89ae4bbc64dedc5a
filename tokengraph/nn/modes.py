"""Modes of a module, and of torch, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

HOOKS = "_forward_hooks", "_forward_pre_hooks"


@contextmanager
def in_eval(module: nn.Module) -> Iterator[None]:
    """Puts a module into eval mode, and each of its parts back into its own mode at the end."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Runs of a module that leave no trace: its buffers come back, and hooks on it and its parts are not called."""
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
    """Operations in the dtype of their inputs: no autocast, and no products of float32 in less than that."""
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def backward_task() -> int:
    """Number of the backward pass that autograd is at in this thread; -1: none."""
    return -1 if torch.compiler.is_compiling() else torch._C._current_graph_task_id()


def in_backward() -> bool:
    """Whether autograd is at work in this thread: then a block that runs is being computed again."""
    return backward_task() != -1
