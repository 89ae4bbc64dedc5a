"""Finds a model's adapter, where a user may have given one for a model of their own."""

from __future__ import annotations

import math

from torch import nn

from tokengraph.adapters import find_adapter
from tokengraph.adapters.base import Adapter


def find_own(model: nn.Module, own: Adapter | None = None) -> tuple[nn.Module, Adapter]:
    """Returns the model that has the blocks and its adapter: ``own`` where it serves the model, else the library's.

    Raises:
        ValueError: If no adapter serves the model.
    """
    return find_adapter(model, own if own is not None and own.serves(model) else None)


def check_made_for(ours: tuple[int, int, int] | None, model: nn.Module, own: Adapter | None = None) -> None:
    """Raises ValueError if a plan's blocks, channels and patches are not the model's; ``None`` is no plan."""
    if ours is None:
        return
    core, adapter = find_own(model, own)
    theirs = len(adapter.blocks(core)), adapter.channels(core), math.prod(adapter.grid(core))
    if ours != theirs:
        told = ["{} blocks, {} channels and {} patches".format(*each) for each in (ours, theirs)]
        raise ValueError(
            f"Expected the model that the plan was made for, with {told[0]} (got one with {told[1]}). "
            "Make a plan for this model."
        )
