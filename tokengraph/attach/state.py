"""The state of the tokens between two blocks of a run: their lineage, sizes and keep decisions."""

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
from tokengraph.flat.segment import TINY
from tokengraph.maps.lineage import Lineage


@dataclass(eq=False)
class Asked:
    """Data that all blocks of a run share, set when the run begins.

    Args:
        shape: Shape of the run's images; ``grid`` is set even if images differ.
        table: The run's plan; ``None`` before the first attached block.
        memory: The result of the strategy's ``begin``.
    """

    shape: InputShape
    table: PlanTable | None = field(default=None, repr=False)
    memory: Any = field(default=None, repr=False)


@dataclass(eq=False)
class State:
    """The state of the tokens between two blocks.

    Args:
        lineage: The maps from the input patches to these tokens, and their layout.
        asked: Data that all blocks of the run share.
        size: Weight of each token, ``[B, P+n]`` float32, prefix tokens 1; ``None`` means all ones. For merging
            strategies it is the number of input patches that the token stands for.
        decisions: Cumulative keep masks ``[B, n]`` of a strategy in training, stage by stage.
        keep_mask: The last of them as an attention mask over the whole sequence.
        biases: Biases on the logits by ``size``, made so far, by rule and dtype; see :mod:`tokengraph.attach.mask`.
        relaxed: The order of tokens by the last relaxed step of a strategy in training, ``[B, n]`` ids, and how many of
            them are still active.
        seen: What the strategy's ``observe`` made of the blocks so far.
    """

    lineage: Lineage
    asked: Asked
    size: Tensor | None = None
    decisions: tuple[Tensor, ...] = ()
    keep_mask: KeepMask | None = field(default=None, repr=False)
    relaxed: tuple[Tensor, int | list[int]] | None = field(default=None, repr=False)
    seen: Any = field(default=None, repr=False)
    biases: dict[Any, Any] = field(init=False, default_factory=dict, repr=False)  # init=False: replace() starts anew

    @classmethod
    def at_input(cls, images: int, patches: int, asked: Asked) -> State:
        """Returns the state of a run's input: ``images`` images of ``patches`` tokens each, padding included."""
        start = Layout(images, patches, asked.shape.counts, asked.shape.present)
        return cls(Lineage(start, start), asked)

    def at_start(self) -> State:
        """Returns the state of the run's input, before any coarsening."""
        return State(self.lineage.at_start(), self.asked)

    def restored(self) -> State:
        """Returns the state after reconstruction, with every input patch."""
        return replace(self.at_start(), decisions=self.decisions, keep_mask=self.keep_mask, seen=self.seen)

    def decided(self, decision: KeepMask, num_prefix: int, size: Tensor | None = None) -> State:
        """Returns the state with one more keep decision over ``[B, n]``, and new sizes; no token is removed."""
        keep = decision.keep
        whole = torch.cat([keep.new_ones(keep.size(0), num_prefix), keep], dim=1)
        bias = None
        if size is not None:
            size = torch.cat([size.new_ones(size.size(0), num_prefix), size], dim=1)
            bias = size.clamp_min(TINY).log()
        mask = KeepMask(whole, official=decision.official, cap=decision.cap, bias=bias)
        return replace(self, decisions=(*self.decisions, keep), keep_mask=mask, size=size)

    def locate(self, device: torch.device) -> Tensor:
        """Returns the tokens' centroids in patch units, ``[B, n, 2]``, as (y, x)."""
        lineage, shape = self.lineage, self.asked.shape
        if shape.grids is not None:
            return lineage.averaged(torch.cat([grid_positions(grid, device=device) for grid in shape.grids]))
        assert shape.grid is not None
        pos = grid_positions(shape.grid, device=device).expand(lineage.start.images, -1, -1)
        return lineage.averaged(pos.flatten(0, 1)) if lineage.coarse else pos
