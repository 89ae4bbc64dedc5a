"""The record of the decisions in each stage of the last run."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tokengraph.attach.record import Record
from tokengraph.attach.threads import OneThread
from tokengraph.nn.slow_fast import Partition

Decision = Tensor | Partition | None  # a mask with a gradient, a partition, or None if all positions are slow


class SpatialRecord(Record, OneThread):
    """The decisions of a model's last run, stage by stage. Copies and pickles start empty.

    Attributes:
        grid: ``(H, W)`` of the map; ``None`` before the first run.
    """

    def __init__(self) -> None:
        self.grid: tuple[int, int] | None = None
        self.stages: list[tuple[Tensor, Decision]] = []

    def begin(self, grid: tuple[int, int]) -> None:
        """Starts a new run, which overwrites the one before."""
        self.take_thread()
        self.grid = grid
        self.stages = []

    def add(self, score: Tensor, decision: Decision) -> None:
        """Stores one stage's log-probabilities ``[B, N, 2]`` and its decision."""
        self.check_thread()
        self.stages = [*self.stages, (score, decision)]

    @property
    def decisions(self) -> list[Tensor]:
        """Masks ``[B, N]``, 1 where a position is slow; after training they carry gradients, for the ratio loss."""
        found = []
        for score, decision in self.stages:
            shape = score.shape[:2]
            if decision is None:
                found.append(score.new_ones(shape))
            elif isinstance(decision, Partition):
                found.append(decision.mask.view(shape).to(score.dtype))
            else:
                found.append(decision)
        return found

    @property
    def scores(self) -> list[Tensor]:
        """Log-probabilities ``[B, N, 2]``, channel 0 for slow."""
        return [score for score, _ in self.stages]

    @property
    def masks(self) -> list[Tensor]:
        """The decisions as maps ``[B, H, W]``, bool."""
        height, width = self.grid or (0, 0)
        return [d.detach().view(d.size(0), height, width) > 0.5 for d in self.decisions]

    @property
    def counts(self) -> list[list[int]]:
        """Slow positions of each image, stage by stage."""
        return [mask.flatten(1).sum(dim=1).tolist() for mask in self.masks]

    def __reduce__(self) -> Any:
        return SpatialRecord, ()
