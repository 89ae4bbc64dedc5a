"""The sparsified stage: between its blocks predictors choose slow positions, which stay slow until the next choice."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tokengraph.adapters.coarse import SITE, Coarse
from tokengraph.adapters.parts.tracing import refuse_tracing
from tokengraph.attach.site import Mark
from tokengraph.nn.decisions import gumbel_keep
from tokengraph.nn.slow_fast import Partition, merge, split_by_count, split_by_mask
from tokengraph.spatial.record import SpatialRecord


@dataclass
class StageSite(Mark):
    """The site of the stage: the record of the run, and the strategy with its predictors."""

    trace: SpatialRecord
    select: Any = field(kw_only=True)  # a bound DynamicSpatial, whose layers and predictors are set


class SpatialStage(Coarse):
    """Mixin of the sparsified stage."""

    channels_first = False
    downsample: Any
    blocks: Any
    training: bool
    grad_checkpointing: bool

    def forward(self, x: Tensor) -> Tensor:
        """Runs the stage, with decisions between its blocks; a map in its own layout in and out."""
        refuse_tracing(x)
        x = self.downsample(x)
        site: StageSite = getattr(self, SITE)
        site.trace.begin((x.size(2), x.size(3)) if self.channels_first else (x.size(1), x.size(2)))
        return self._train(site, x) if self.training else self._evaluate(site, x)

    def _evaluate(self, site: StageSite, x: Tensor) -> Tensor:
        select, route = site.select, None
        for index, block in enumerate(self.blocks):
            if index in select.layers:
                route = self._route(site, select.layers.index(index), x)
            x = self._run(block, x) if route is None else self._run(block, x, route)
        return x

    def _route(self, site: StageSite, stage: int, x: Tensor) -> Partition | None:
        """Chooses the slow positions of the next blocks; ``None``: all of them."""
        select = site.select
        tokens = self._tokens(x)
        logp = select.predictors[stage](tokens)
        score, count = logp[..., 0], int(tokens.size(1) * select.ratios[stage])
        if select.threshold is not None:
            route = split_by_mask(score.detach().exp() >= select.threshold)
        else:
            route = None if count == tokens.size(1) else split_by_count(score, count)
        site.trace.add(logp, route)
        return route

    def _train(self, site: StageSite, x: Tensor) -> Tensor:
        select = site.select
        x1 = x2 = x
        mask: Tensor | None = None
        for index, block in enumerate(self.blocks):
            if index in select.layers:
                stage = select.layers.index(index)
                merged = x1 if mask is None else self._merge(x1, x2, mask)
                if select.remerge:
                    x1 = x2 = merged
                mask = self._draw(site, stage, merged)
            if mask is None:
                x1 = x2 = self._run(block, x1)
            else:
                x1, x2 = self._run(block, x1, mask, x2)
        return x1 if mask is None else self._merge(x1, x2, mask)

    def _draw(self, site: StageSite, stage: int, x: Tensor) -> Tensor:
        """Draws a differentiable mask ``[B, H, W]``, 1 for slow."""
        select = site.select
        logp = select.predictors[stage](self._tokens(x))
        noise = None if select.noise is None else select.noise[stage]
        keep = gumbel_keep(logp, noise=noise)
        site.trace.add(logp, keep)
        assert site.trace.grid is not None
        return keep.unflatten(1, site.trace.grid)

    def _merge(self, x1: Tensor, x2: Tensor, mask: Tensor) -> Tensor:
        return merge(x1, x2, mask[:, None] if self.channels_first else mask[..., None])

    def _tokens(self, x: Tensor) -> Tensor:
        """A map as ``[B, N, C]``."""
        return (x.permute(0, 2, 3, 1) if self.channels_first else x).flatten(1, 2)

    def _run(self, block: nn.Module, *args: Any) -> Any:
        """Runs a block. Gradient checkpointing runs blocks again in backward, but never decisions."""
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *args, use_reentrant=False)
        return block(*args)
