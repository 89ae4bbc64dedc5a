"""The marks that attached modules carry: the run's record, the module's place and the arguments of ``attach``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from tokengraph.attach.request import Request
from tokengraph.attach.trace import Trace


@dataclass
class Mark:
    """The mark of every attached module, under the attribute ``SITE``.

    Args:
        trace: The record of the run, which also identifies the attachment.
        index: The block's index in its model or stage; -1 if the module is not a block.
        original: The module's class before attaching; ``None`` if it did not change.
        parts: Names of the modules and parameters that attaching added.
        values: The module's own values of the attributes that attaching set, by name.
    """

    trace: Any
    index: int = -1
    original: type | None = None
    parts: tuple[str, ...] = ()
    values: dict[str, Any] = field(default_factory=dict)


@dataclass
class Site(Mark):
    """The mark of an attached module in a plain model, with the resolved arguments of ``attach``."""

    trace: Trace
    request: Request = field(kw_only=True)

    @property
    def lift(self) -> bool:
        """True if the model returns every input patch."""
        return self.request.lift

    def run_block(self, block: nn.Module, x: Tensor, mask: Tensor | None, side: dict[str, Any]) -> Tensor:
        """Runs the block that carries this site; see :func:`tokengraph.attach.block.run_block`."""
        return self.request.run(self, block, x, mask, side)

    @property
    def stores(self) -> bool:
        """True if the strategy stores features of dropped tokens and restores them."""
        return self.request.select.stores
