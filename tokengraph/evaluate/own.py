"""Finds a model's adapter, where a user may have given one for a model of their own."""

from __future__ import annotations

from torch import nn

from tokengraph.adapters import find_adapter
from tokengraph.adapters.base import Adapter


def find_own(model: nn.Module, own: Adapter | None = None) -> tuple[nn.Module, Adapter]:
    """Returns the model that has the blocks and its adapter: ``own`` where it serves the model, else the library's.

    Raises:
        ValueError: If no adapter serves the model.
    """
    return find_adapter(model, own if own is not None and own.serves(model) else None)
