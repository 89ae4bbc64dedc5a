"""Ways to write a model down that cannot follow it while tokens are removed: refused, with what does."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Proxy

INSTEAD = (
    "Use torch.export or torch.compile. For features of a layer: a forward hook on the block, "
    "model.forward_intermediates, or tg.TokenGraph.from_model; handle.trace.lift brings them back to every patch."
)


def refuse_tracing(*values: Any) -> None:
    """Raises RuntimeError where ``torch.fx`` traces symbolically: its values have no shapes to count tokens by.

    Cost: one look at the type of each value; nothing under ``torch.compile``.
    """
    if torch.compiler.is_compiling():
        return
    if any(isinstance(value, Proxy) for value in values):
        raise RuntimeError(
            "Expected a model without a strategy for torch.fx's symbolic tracing, which create_feature_extractor uses "
            f"(got an attached one, whose choices depend on the image). {INSTEAD}"
        )


def refuse_script(module: Any) -> Any:
    """Raises RuntimeError; ``torch.jit.script`` asks it of modules before it compiles them."""
    raise RuntimeError(
        f"Expected a model without a strategy for torch.jit.script (got an attached {type(module).__name__}). {INSTEAD}"
    )
