"""Refuses ``torch.fx`` tracing and ``torch.jit.script`` of attached models, and names what works instead."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Proxy

INSTEAD = (
    "Use torch.export or torch.compile. For features of a layer use a forward hook on the block, "
    "model.forward_intermediates or tg.TokenGraph.from_model; handle.trace.lift brings them back to every patch."
)


def refuse_tracing(*values: Any) -> None:
    """Raises RuntimeError under ``torch.fx``'s symbolic tracing, whose values have no shapes to count tokens by.

    Cost: one type check per value; nothing under ``torch.compile``.
    """
    if torch.compiler.is_compiling():
        return
    if any(isinstance(value, Proxy) for value in values):
        raise RuntimeError(
            "Expected a model without a strategy for torch.fx's symbolic tracing, which create_feature_extractor uses "
            f"(got an attached one, whose choices depend on the image). {INSTEAD}"
        )


def refuse_script(module: Any) -> Any:
    """Raises RuntimeError. ``torch.jit.script`` calls this on a module before it compiles it."""
    raise RuntimeError(
        f"Expected a model without a strategy for torch.jit.script (got an attached {type(module).__name__}). {INSTEAD}"
    )
