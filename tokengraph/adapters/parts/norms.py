"""Finds the norms of a pre-norm block by their usual names."""

from __future__ import annotations

from typing import Any

from torch import nn

NORMS = (("norm1", "ln_1", "layernorm_before", "layer_norm1"), ("norm2", "ln_2", "layernorm_after", "layer_norm2"))


def find_norms(block: Any) -> tuple[nn.Module, nn.Module]:
    """Returns the norms in front of attention and MLP.

    Raises:
        ValueError: If the block has none of the names.
    """
    found = []
    for names in NORMS:
        norm = next((m for name in names if isinstance(m := getattr(block, name, None), nn.Module)), None)
        if norm is None:
            raise ValueError(
                f"Expected {type(block).__name__} with a norm called {', '.join(names)} (got none). Override norms() "
                "in the adapter."
            )
        found.append(norm)
    return found[0], found[1]
