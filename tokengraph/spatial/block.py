"""A block whose channel half (its MLP) has a slow and a fast path, by the block's own submodules."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tokengraph.adapters.coarse import Coarse
from tokengraph.nn.slow_fast import Partition, merge, slow_fast


class SpatialBlock(Coarse):
    """Mixin of a sparsified block; a family's own mixin defines its halves. Here maps are ``[B, H, W, C]``."""

    channels_first = False

    def forward(self, x: Tensor, route: Partition | Tensor | None = None, x2: Tensor | None = None) -> Any:
        """Runs the block.

        Args:
            x: A map, ``[B, H, W, C]``, or ``[B, C, H, W]`` if ``channels_first``; in training of the slow stream.
            route: ``None``: runs the stock block. In evaluation a partition, in training a mask ``[B, H, W]``, 1 for
                slow.
            x2: In training the map of the fast stream.

        Returns:
            A map like ``x``; in training those of both streams.
        """
        if route is None:
            return super().forward(x)  # type: ignore[misc]
        if isinstance(route, Partition):
            mixed, base = self.mix(x)
            mixed, base = self.last(mixed), self.last(x if base is None else base)
            images, height, width, channels = base.shape

            def slow(rows: Tensor) -> Tensor:
                return self.slow_rows(rows, route.slow // (height * width), images)

            out = slow_fast(mixed.flatten(0, 2), base.flatten(0, 2), route, slow, self.fast)
            return self.native(out.view(images, height, width, channels))
        assert x2 is not None
        return self._streams(x, x2, route[..., None])

    def _streams(self, x1: Tensor, x2: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Runs both paths at every position; returns the slow and the fast stream."""
        x1, x2 = self.last(x1), self.last(x2)
        mixed, base = self.mix(self.native(merge(x1, x2, mask)))
        mixed = self.last(mixed)
        base1, base2 = (x1, x2) if base is None else (self.last(base), self.last(base))
        o1 = base1 + self.drop(self.slow_map(merge(mixed, x1, mask), mask))
        o2 = base2 + self.drop(self.fast(merge(x2, mixed, mask)))
        return self.native(o1), self.native(o2)

    def last(self, x: Tensor) -> Tensor:
        """Moves the channels of a map in the block's own layout last."""
        return x.permute(0, 2, 3, 1) if self.channels_first else x

    def native(self, x: Tensor) -> Tensor:
        """The inverse of :meth:`last`."""
        return x.permute(0, 3, 1, 2) if self.channels_first else x

    def mix(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Runs the spatial half on a map in the block's own layout.

        Returns the input of the channel half, and the map that its output is added to (``None``: the stream itself).
        """
        raise NotImplementedError

    def slow(self, x: Tensor) -> Tensor:
        """Runs the slow path, whose output is added, ``[..., C]``."""
        raise NotImplementedError

    def slow_rows(self, rows: Tensor, image: Tensor, images: int) -> Tensor:
        """Runs the slow path on slow positions ``[S, C]``, of ``image [S]`` in ``[0, images)``.

        A family overrides it where positions of an image see each other.
        """
        return self.slow(rows)

    def slow_map(self, x: Tensor, mask: Tensor) -> Tensor:
        """Runs the slow path at every position ``[B, H, W, C]``, by training; ``mask [B, H, W, 1]``: 1 where slow."""
        return self.slow(x)

    def fast(self, x: Tensor) -> Tensor:
        """Runs the fast path, whose output is added, ``[..., C]``."""
        raise NotImplementedError

    def drop(self, x: Tensor) -> Tensor:
        """Applies the stochastic depth of the channel half."""
        raise NotImplementedError
