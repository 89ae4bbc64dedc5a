"""The record of a packed tower's last run: the units before each block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokengraph.packed.units import Units
from tokengraph.schedule import Schedule, tokens_per_layer
from tokengraph.select.base import Select


class PackedRecord:
    """The units of the last run.

    A block reads the entry of its index and writes the next one, so that a block that runs again during backward
    (gradient checkpointing) finds what it saw.

    Args:
        depth: Blocks of the tower.
        side: Patches along one side of a unit.
        select: The strategy.
        schedule: The schedule, in units of each frame.
    """

    def __init__(self, depth: int, side: int, select: Select, schedule: Schedule) -> None:
        self.depth, self.side, self.select, self.schedule = depth, side, select, schedule
        self.units: list[Units | None] = [None] * (depth + 1)
        self.plans: list[list[int]] = []

    def begin(self, grid: Tensor, raster: Tensor) -> None:
        """Starts a run on images of these shapes, ``(t, h, w)`` in patches."""
        shapes = [(int(t), int(h) // self.side, int(w) // self.side) for t, h, w in grid.tolist()]
        frames = [(h, w) for t, h, w in shapes for _ in range(t)]
        plans = {n: tokens_per_layer(self.schedule, self.depth, n) for n in {h * w for h, w in frames}}
        self.plans = [plans[h * w] for h, w in frames]
        self.units = [Units.whole(frames, raster), *[None] * self.depth]

    def at(self, index: int) -> Units:
        """The units that enter block ``index``.

        Raises:
            RuntimeError: If the block runs outside a run of its tower.
        """
        found = self.units[index]
        if found is None:
            raise RuntimeError(f"Expected block {index} to run as part of its tower (got a call of its own).")
        return found

    def budgets(self, layer: int) -> list[int] | None:
        """Units that each frame keeps after ``layer`` blocks; ``None`` if no frame loses any there."""
        before = [plan[max(layer - 1, 0)] for plan in self.plans]
        after = [plan[layer] for plan in self.plans]
        if layer == 0:
            before = [h * w for h, w in self.at(0).frames]
        return after if any(a < b for a, b in zip(after, before, strict=True)) else None

    @property
    def counts(self) -> list[int]:
        """Units of all frames before the first block and after each block, in the last run.

        Raises:
            RuntimeError: Before a run.
        """
        return [self.at(layer).stands.numel() for layer in range(self.depth + 1)]

    def lift(self, rows: Tensor, layer: int | None = None) -> Tensor:
        """Expands rows of patches after ``layer`` blocks (default: all) to all patches, in the tower's order.

        Args:
            rows: ``[u * m * m, C]``.
            layer: Finished blocks.

        Returns:
            ``[U * m * m, C]``.
        """
        units = self.at(self.depth if layer is None else layer)
        return units.lift(rows.unflatten(0, (-1, self.side**2))).flatten(0, 1)

    def __reduce__(self) -> Any:
        return PackedRecord, (self.depth, self.side, self.select, self.schedule)


def keys_of(qkv: Tensor, heads: int, unit: int) -> Tensor:
    """Keys of units, the mean over heads and patches, ``[u, D]``, of the projections ``[u * m * m, 3 * C]``."""
    keys = qkv.detach().unflatten(1, (3, heads, -1))[:, 1].mean(dim=1, dtype=torch.float32)
    return keys.unflatten(0, (-1, unit)).mean(dim=1)
