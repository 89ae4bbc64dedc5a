"""A block whose channel part has a slow and a fast path, in its own class and by its own submodules."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tokengraph.adapters.coarse import Coarse
from tokengraph.nn.slow_fast import Partition, merge, slow_fast


class SpatialBlock(Coarse):
    """Mixin of a sparsified block. A family's own mixin says what its halves are; maps are ``[B, H, W, C]`` here."""

    channels_first = False

    def forward(self, x: Tensor, route: Partition | Tensor | None = None, x2: Tensor | None = None) -> Any:
        """Runs the block on a map of its own layout.

        Args:
            x: The map; in training that of the slow stream.
            route: ``None``: the stock block. A partition: evaluation. A mask ``[B, H, W]``, 1 for slow: training.
            x2: The map of the fast stream, in training.

        Returns:
            A map; in training both streams.
        """
        if route is None:
            return super().forward(x)  # type: ignore[misc]
        if isinstance(route, Partition):
            mixed, base = self.mix(x)
            mixed, base = self.last(mixed), self.last(x if base is None else base)
            out = slow_fast(mixed.flatten(0, 2), base.flatten(0, 2), route, self.slow, self.fast)
            return self.native(out.view(*base.shape[:3], -1))
        assert x2 is not None
        return self._streams(x, x2, route[..., None])

    def _streams(self, x1: Tensor, x2: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Both paths at every position; what a position takes from the other is the stream that it is not in."""
        x1, x2 = self.last(x1), self.last(x2)
        mixed, base = self.mix(self.native(merge(x1, x2, mask)))
        mixed = self.last(mixed)
        base1, base2 = (x1, x2) if base is None else (self.last(base), self.last(base))
        o1 = base1 + self.drop(self.slow(merge(mixed, x1, mask)))
        o2 = base2 + self.drop(self.fast(merge(x2, mixed, mask)))
        return self.native(o1), self.native(o2)

    def last(self, x: Tensor) -> Tensor:
        """A map of the block's own layout with its channels last."""
        return x.permute(0, 2, 3, 1) if self.channels_first else x

    def native(self, x: Tensor) -> Tensor:
        """And back."""
        return x.permute(0, 3, 1, 2) if self.channels_first else x

    def mix(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Spatial half on a map of the block's own layout.

        Returns what the channel half reads, and what it adds to (``None``: the stream itself).
        """
        raise NotImplementedError

    def slow(self, x: Tensor) -> Tensor:
        """What the slow path adds, ``[..., C]``."""
        raise NotImplementedError

    def fast(self, x: Tensor) -> Tensor:
        """What the fast path adds, ``[..., C]``."""
        raise NotImplementedError

    def drop(self, x: Tensor) -> Tensor:
        """Stochastic depth of the channel half."""
        raise NotImplementedError
