"""The tokens between two blocks of a run: where they come from, how heavy they are, and what the run asked for."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tokengraph.adapters.base import InputShape
from tokengraph.attach.plan import PlanTable
from tokengraph.attention.keep_mask import KeepMask
from tokengraph.edges.grid import grid_positions
from tokengraph.flat.layout import Layout
from tokengraph.maps.lineage import Lineage


@dataclass(eq=False)
class Asked:
    """What a run asks of every block, settled when it begins.

    Args:
        shape: Of the run's images; ``grid`` is set also where images differ.
        table: What is planned; ``None`` in front of the first attached block.
        memory: What the strategy's ``begin`` made of the input.
    """

    shape: InputShape
    table: PlanTable | None = field(default=None, repr=False)
    memory: Any = field(default=None, repr=False)


@dataclass(eq=False)
class State:
    """The tokens between two blocks.

    Args:
        lineage: Where they come from, and how they lie.
        asked: What the run asks of every block.
        size: Weight of each token, ``[B, P+n]`` float32, prefix tokens 1; ``None``: all ones. Where the strategy
            merges it is the number of input patches that the token stands for.
        decisions: Cumulative keep masks ``[B, n]`` of a strategy in training, stage by stage.
        keep_mask: The last of them as an attention mask over the whole sequence.
    """

    lineage: Lineage
    asked: Asked
    size: Tensor | None = None
    decisions: tuple[Tensor, ...] = ()
    keep_mask: KeepMask | None = field(default=None, repr=False)

    @classmethod
    def at_input(cls, images: int, patches: int, asked: Asked) -> State:
        """The tokens of ``images`` images, ``patches`` each with padding, as they come."""
        start = Layout(images, patches, asked.shape.counts, asked.shape.present)
        return cls(Lineage(start, start), asked)

    def at_start(self) -> State:
        """The tokens as they came, before anything was coarsened."""
        return State(self.lineage.at_start(), self.asked)

    def restored(self) -> State:
        """The state after reconstruction: every input patch is there again."""
        return replace(self.at_start(), decisions=self.decisions, keep_mask=self.keep_mask)

    def decided(self, decision: KeepMask, num_prefix: int) -> State:
        """The state after one more keep decision over ``[B, n]``: nothing is taken out."""
        keep = decision.keep
        whole = torch.cat([keep.new_ones(keep.size(0), num_prefix), keep], dim=1)
        mask = KeepMask(whole, official=decision.official, cap=decision.cap)
        return replace(self, decisions=(*self.decisions, keep), keep_mask=mask)

    def locate(self, device: torch.device) -> Tensor:
        """Centroids of the tokens in patch units, ``[B, n, 2]``."""
        lineage, shape = self.lineage, self.asked.shape
        if shape.grids is not None:
            return lineage.averaged(torch.cat([grid_positions(grid, device=device) for grid in shape.grids]))
        assert shape.grid is not None
        pos = grid_positions(shape.grid, device=device).expand(lineage.start.images, -1, -1)
        return lineage.averaged(pos.flatten(0, 1)) if lineage.coarse else pos
