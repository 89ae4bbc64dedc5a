"""The stage that is sparsified: who is slow is decided between its blocks, and holds until the next decision."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tokengraph.attach.block import Coarse
from tokengraph.attach.site import SITE
from tokengraph.nn.decisions import gumbel_keep
from tokengraph.nn.slow_fast import Partition, merge, split_by_count, split_by_mask
from tokengraph.spatial.block import SpatialSite
from tokengraph.spatial.record import SpatialRecord

if TYPE_CHECKING:
    from tokengraph.spatial.dynamic_spatial import DynamicSpatial


@dataclass
class StageSite(SpatialSite):
    """What the stage carries beside that: what was asked for, its predictors, and the record of the run."""

    select: DynamicSpatial | None = None
    record: SpatialRecord = field(default_factory=SpatialRecord)


class SpatialStage(Coarse):
    """Mixin of the sparsified stage."""

    channels_first = False
    downsample: Any
    blocks: Any
    training: bool
    grad_checkpointing: bool

    def forward(self, x: Tensor) -> Tensor:
        """The stage's own forward, with decisions between its blocks; a map of its own layout, as before."""
        x = self.downsample(x)
        site: StageSite = getattr(self, SITE)
        site.record.begin((x.size(2), x.size(3)) if self.channels_first else (x.size(1), x.size(2)))
        return self._train(site, x) if self.training else self._evaluate(site, x)

    def _evaluate(self, site: StageSite, x: Tensor) -> Tensor:
        select, route = _asked(site), None
        for index, block in enumerate(self.blocks):
            if index in select.layers:
                route = self._route(site, select.layers.index(index), x)
            x = self._run(block, x) if route is None else self._run(block, x, route)
        return x

    def _route(self, site: StageSite, stage: int, x: Tensor) -> Partition | None:
        """Who is slow from here on; ``None``: everyone."""
        select = _asked(site)
        tokens = self._tokens(x)
        logp = select.predictors[stage](tokens)
        score, count = logp[..., 0], int(tokens.size(1) * select.ratios[stage])
        if select.threshold is not None:
            route = split_by_mask(score.detach().exp() >= select.threshold)
        else:
            route = None if count == tokens.size(1) else split_by_count(score, count)
        site.record.add(logp, route)
        return route

    def _train(self, site: StageSite, x: Tensor) -> Tensor:
        select = _asked(site)
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
        """A mask ``[B, H, W]``, 1 for slow, drawn, and differentiable."""
        select = _asked(site)
        logp = select.predictors[stage](self._tokens(x))
        noise = None if select.noise is None else select.noise[stage]
        keep = gumbel_keep(logp, noise=noise)
        site.record.add(logp, keep)
        assert site.record.grid is not None
        return keep.unflatten(1, site.record.grid)

    def _merge(self, x1: Tensor, x2: Tensor, mask: Tensor) -> Tensor:
        return merge(x1, x2, mask[:, None] if self.channels_first else mask[..., None])

    def _tokens(self, x: Tensor) -> Tensor:
        """A map as ``[B, N, C]``."""
        return (x.permute(0, 2, 3, 1) if self.channels_first else x).flatten(1, 2)

    def _run(self, block: nn.Module, *args: Any) -> Any:
        """Runs a block. Under gradient checkpointing it is computed again in backward; decisions never are."""
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *args, use_reentrant=False)
        return block(*args)


def _asked(site: StageSite) -> Any:
    assert site.select is not None
    return site.select
