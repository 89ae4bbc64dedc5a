"""What an attached module carries: the record of the run, its own place, and what was asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from tokengraph.attach.request import Request
from tokengraph.attach.trace import Trace


@dataclass
class Mark:
    """What every attached module carries, under the attribute ``SITE``: whose it is, and how it was before.

    Args:
        trace: The record of the run. It tells one attachment from another.
        index: The block's place in its model or stage; -1: the module is no block.
        original: The module's class before; ``None``: it still has it.
        parts: Names of the modules and parameters that were put into it.
    """

    trace: Any
    index: int = -1
    original: type | None = None
    parts: tuple[str, ...] = ()


@dataclass
class Site(Mark):
    """What an attached module of a plain model knows beside that: what was asked for."""

    trace: Trace
    request: Request = field(kw_only=True)

    @property
    def lift(self) -> bool:
        """Whether the model gives every input patch back."""
        return self.request.lift

    def run_block(self, block: nn.Module, x: Tensor, mask: Tensor | None, side: dict[str, Any]) -> Tensor:
        """Runs the block that carries this site; see :func:`tokengraph.attach.block.run_block`."""
        return self.request.run(self, block, x, mask, side)

    @property
    def stores(self) -> bool:
        """Whether tokens that leave come back with something of their own."""
        return self.request.select.stores
