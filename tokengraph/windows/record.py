"""What the windows of the last run became, and where the blocks of a run find it."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from tokengraph.nn.modes import in_backward
from tokengraph.windows.clusters import WindowClusters
from tokengraph.windows.grid import Pair

RUNS = 256  # block inputs that backward may come back to


class WindowRecord:
    """The clusters of a model's last run. Copies, and what is pickled, start empty.

    Gradient checkpointing runs blocks again during backward, when another run may have been made: a block then finds
    its clusters by the memory that its input lies in.

    Attributes:
        clusters: The last run's; ``None`` before one, and for strategies that work within a block.
        coarse: Whether the block that ran last left a map of clusters.
    """

    def __init__(self) -> None:
        self.clusters: WindowClusters | None = None
        self.coarse = False
        self._entered: OrderedDict[tuple[int, int], WindowClusters] = OrderedDict()

    @property
    def grid(self) -> Pair | None:
        """``(H, W)`` of the full map; ``None`` before a run."""
        return None if self.clusters is None else self.clusters.cut.grid

    @property
    def coarse_grid(self) -> Pair | None:
        """``(n*h, m*w)`` of the map of clusters; ``None`` before a run."""
        return None if self.clusters is None else self.clusters.grid

    def find(self, index: int, x: Tensor) -> WindowClusters:
        """The clusters that ``x``, which comes to block ``index``, consists of.

        Raises:
            RuntimeError: If a block runs outside a run of its model.
        """
        if in_backward():
            found = self._entered.get((index, x.data_ptr()))
        else:
            found = self.clusters
            if found is not None:
                self._remember(index, x, found)
        if found is None or (x.size(1), x.size(2)) != found.grid:
            raise RuntimeError(f"Expected block {index} to run as part of its model (got a call of its own).")
        return found

    def leave(self, index: int, x: Tensor, clusters: WindowClusters, *, coarse: bool) -> None:
        """Notes what block ``index`` made of them, ``x``, and whether that is a map of clusters."""
        if in_backward():
            self._remember(index + 1, x, clusters)
            return
        self.clusters = clusters
        self.coarse = coarse

    def _remember(self, index: int, x: Tensor, clusters: WindowClusters) -> None:
        if torch.compiler.is_compiling() or not (torch.is_grad_enabled() or x.requires_grad):
            return
        self._entered[index, x.data_ptr()] = clusters
        self._entered.move_to_end((index, x.data_ptr()))
        while len(self._entered) > RUNS:
            self._entered.popitem(last=False)

    def __reduce__(self) -> Any:
        return WindowRecord, ()
