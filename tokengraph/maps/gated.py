"""A hard map that multiplies each token's row by a factor, as PyG's top-k pooling multiplies by scores."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from tokengraph.maps.check import check_each, check_rows
from tokengraph.maps.hard import Assignment


@dataclass(frozen=True, eq=False, repr=False)
class Gated(Assignment):
    """An :class:`~tokengraph.Assignment` whose ``reduce`` takes ``gate * x``; sizes and positions are not multiplied.

    Args:
        gate: Factor of each token's row, ``[M]``. Gradients reach it through ``reduce``.
    """

    gate: Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gate is None:
            raise ValueError("Expected gate of shape [M] (got None). Without one take an Assignment.")
        check_each(self.cluster.shape, gate=self.gate)

    @property
    def plain(self) -> Assignment:
        """The map without its gate."""
        return Assignment(**{f.name: getattr(self, f.name) for f in fields(Assignment)})

    def reduce(
        self, x: Tensor, size: Tensor | None = None, *, reduce: str = "mean", backend: str = "auto"
    ) -> tuple[Tensor, Tensor]:
        """Pools rows multiplied by the gate; see :meth:`tokengraph.Assignment.reduce`."""
        assert self.gate is not None
        check_rows(x, self.num_tokens, "x")
        gate = self.gate.view(-1, *[1] * (x.dim() - 1))
        return super().reduce((x * gate).to(x.dtype), size, reduce=reduce, backend=backend)

    @property
    def counts_apart(self) -> bool:
        """True: a composition has to reduce step by step."""
        return True

    def by_size(self) -> Assignment:
        """Returns the map without gate, weight and mass; see :meth:`tokengraph.Assignment.by_size`."""
        return self.plain.by_size()

    def behind(self, images: int, ahead: Assignment) -> Gated:
        """Returns ``ahead``, this map with prefix tokens in front of each image, with a gate of 1 for these."""
        assert self.gate is not None
        rows = self.gate.view(images, -1)
        count = ahead.num_tokens // max(images, 1) - rows.size(1)
        gate = torch.cat([rows.new_ones(images, count), rows], dim=1).flatten()
        own: dict[str, Any] = {f.name: getattr(ahead, f.name) for f in fields(Assignment)}
        return Gated(**own, gate=gate)
