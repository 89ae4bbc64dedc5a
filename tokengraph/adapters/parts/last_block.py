"""The last block of a model that lays tokens out on their grid behind it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tokengraph.adapters.coarse import SITE, CoarseSite, ours


@ours
def lift_block(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """Forward hook of the last block: gives every patch to what lays them out."""
    site: CoarseSite = module.__dict__[SITE]
    return site.trace.lift_sequence(output)
