"""The record of the last run's window clusters, which later blocks of the run read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokengraph.attach.recompute import Recompute
from tokengraph.attach.record import Record
from tokengraph.attach.threads import OneThread
from tokengraph.nn.modes import in_backward
from tokengraph.windows.clusters import WindowClusters
from tokengraph.windows.grid import Pair, area

RUNS = 256  # block inputs kept for gradient checkpointing


class WindowRecord(Record, OneThread):
    """The clusters of a model's last run. Copies and pickles start empty.

    Gradient checkpointing runs blocks again during backward, possibly after another run. A block then finds its
    clusters by the storage of its input, which its checkpoint keeps alive.

    Args:
        depth: Blocks in the model or stage.
        before: The block that makes the clusters.
        until: Last changed block + 1.

    Attributes:
        clusters: The last run's clusters; ``None`` before one, and for strategies that work within a block.
        coarse: True if the last block that ran returned a map of clusters.
    """

    def __init__(self, depth: int, before: int, until: int) -> None:
        self.depth, self.before, self.until = depth, before, until
        self.clusters: WindowClusters | None = None
        self.coarse = False
        self._inputs: Recompute[WindowClusters] = Recompute()

    @property
    def grid(self) -> Pair | None:  # type: ignore[override]
        """``(H, W)`` of the full map; ``None`` before a run."""
        return None if self.clusters is None else self.clusters.cut.grid

    @property
    def coarse_grid(self) -> Pair | None:
        """``(n*h, m*w)`` of the map of clusters; ``None`` before a run."""
        return None if self.clusters is None else self.clusters.grid

    @property
    def counts(self) -> list[int]:
        """Returns the tokens of the map before the first block and after each block, in the last run.

        Raises:
            RuntimeError: Before a run, and for strategies that work within a block.
        """
        made = self._made()
        full, few = area(made.cut.grid), area(made.grid)
        return [few if self.before < layer < self.until else full for layer in range(self.depth + 1)]

    def as_map(self, tokens: Tensor) -> Tensor:
        """Returns a map ``[B, C, H, W]`` of every position.

        Args:
            tokens: A block's map of clusters ``[B, n*h, m*w, C]``, which is then restored; or the full map
                ``[B, H, W, C]``, or its rows ``[B, H*W, C]``.

        Raises:
            RuntimeError: Before a run, and for strategies that work within a block.
            ValueError: For another shape.
        """
        made = self._made()
        if tokens.dim() == 3:
            return super().as_map(tokens)
        shape = tuple(tokens.shape[1:3])
        if tokens.dim() != 4 or shape not in (made.grid, made.cut.grid):
            raise ValueError(
                f"Expected maps of {made.grid} clusters or {made.cut.grid} tokens, channels last (got "
                f"{list(tokens.shape)})."
            )
        return (made.restore(tokens) if shape == made.grid else tokens).permute(0, 3, 1, 2)

    def _made(self) -> WindowClusters:
        if self.clusters is None:
            raise RuntimeError(
                "Expected a run of the model that makes clusters before its record is read (got none). Call the model "
                "first; ToMe in windows merges within each block and leaves no clusters."
            )
        return self.clusters

    def begin(self) -> None:
        """Starts a new run: drops the last one and every entry whose tensor has been freed."""
        self.coarse = False
        if in_backward():  # gradient checkpointing repeats a run and still holds its inputs
            return
        self.take_thread()
        self.clusters = None
        if not torch.compiler.is_compiling():
            self._inputs.let_go()

    def find(self, index: int, x: Tensor) -> WindowClusters:
        """Returns the clusters of ``x``, the input of block ``index``.

        Raises:
            RuntimeError: If a block runs outside a run of its model, or in two threads at once.
        """
        if in_backward():
            found = self._inputs.find(index, x)
        else:
            self.check_thread()
            found = self.clusters
            if found is not None:
                self._remember(index, x, found)
        if found is None or (x.size(1), x.size(2)) != found.grid:
            raise RuntimeError(f"Expected block {index} to run as part of its model (got a call of its own).")
        return found

    def leave(self, index: int, x: Tensor, clusters: WindowClusters, *, coarse: bool) -> None:
        """Stores the clusters of ``x``, the output of block ``index``, and whether ``x`` is a map of clusters."""
        if in_backward():
            self._remember(index + 1, x, clusters)
            return
        self.check_thread()
        self.clusters = clusters
        self.coarse = coarse

    def _remember(self, index: int, x: Tensor, clusters: WindowClusters) -> None:
        if not torch.compiler.is_compiling() and (torch.is_grad_enabled() or x.requires_grad):
            self._inputs.remember(index, x, clusters, RUNS)

    def __reduce__(self) -> Any:
        return WindowRecord, (self.depth, self.before, self.until)
