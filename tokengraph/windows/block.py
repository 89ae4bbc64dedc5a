"""Blocks on maps with attention windows: on clusters, or with an MLP on merged tokens; a family gives the halves."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from tokengraph.adapters.coarse import Coarse
from tokengraph.adapters.parts.tracing import refuse_tracing
from tokengraph.windows.clusters import cluster_windows
from tokengraph.windows.grid import Pair, cut_of, stitch
from tokengraph.windows.merge import mean_keys, merged_update
from tokengraph.windows.plan import here, run_and_keep


class MapBlock(Coarse):
    """The halves of a block on maps ``[B, H, W, C]``.

    Attributes:
        window_size: Side of the block's windows; 0: its attention sees the whole map.
        projection: Path of the joint projection of queries, keys and values.
    """

    window_size: int
    projection: ClassVar[str] = "attn.qkv"

    def attend(self, x: Tensor, window: Pair | None) -> Tensor:
        """Runs the attention half in windows of this size; ``None``: over the whole map."""
        raise NotImplementedError

    def feed(self, x: Tensor) -> Tensor:
        """Runs the MLP half, and what else comes behind it."""
        raise NotImplementedError

    def update(self, rows: Tensor) -> Tensor:
        """The MLP half without its residual; rows ``[1, n, C]`` in and out."""
        raise NotImplementedError

    def dropped(self, update: Tensor) -> Tensor:
        """Stochastic depth on the update of the MLP, if the block has it."""
        return update

    def behind(self, x: Tensor) -> Tensor:
        """Runs what comes behind the MLP half, if there is anything."""
        return x

    def heads(self) -> tuple[int, Any]:
        """Number of heads, and the norm of keys or ``None``."""
        raise NotImplementedError

    def as_map(self, x: Tensor) -> Tensor:
        """The block's input as ``[B, H, W, C]``."""
        return x

    def as_stock(self, x: Tensor) -> Any:
        """A map ``[B, H, W, C]`` as the block returns it."""
        return x


class ClusteredBlock(MapBlock):
    """A block on clusters: windowed attention runs in small windows, global attention over all clusters."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The first such block takes a full map, the last returns one; between them maps hold clusters."""
        refuse_tracing(x)
        plan, site = here(self)
        if plan.nothing:
            return super().forward(x, *args, **kwargs)  # type: ignore[misc]
        x = self.as_map(x)
        if site.index == plan.before:
            clusters = cluster_windows(x, plan.window, plan.small, plan.to_grid, padding=plan.padding)
            x = clusters.map
        else:
            clusters = site.trace.find(site.index, x)
        x = self.feed(self.attend(x, plan.small if self.window_size else None))
        last = site.index + 1 == plan.until
        if last:
            x = clusters.restore(x)
        site.trace.leave(site.index, x, clusters, coarse=not last)
        return self.as_stock(x)


class MergedBlock(MapBlock):
    """A windowed block whose MLP runs on merged tokens."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Full maps in and out."""
        refuse_tracing(x)
        plan, _ = here(self)
        if plan.nothing:
            return super().forward(x, *args, **kwargs)  # type: ignore[misc]
        x, (heads, norm) = self.as_map(x), self.heads()
        x, qkv = run_and_keep(self, lambda: self.attend(x, plan.window), self.projection)
        qkv = qkv.flatten(1, 2) if qkv.dim() == 4 else qkv
        keys = stitch(mean_keys(qkv, heads, norm), cut_of(x, plan.window))
        update = merged_update(self.update, x, keys, plan.select, plan.window, plan.keep)
        return self.as_stock(self.behind(x + self.dropped(update)))
