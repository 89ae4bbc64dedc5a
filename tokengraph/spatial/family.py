"""What a family of hierarchical backbones must say about itself."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from tokengraph.spatial.block import SpatialBlock
from tokengraph.spatial.stage import SpatialStage


class Family:
    """The anatomy of one family: where its third stage is, what its blocks get, and under which names."""

    eps: ClassVar[float]
    block_mixin: ClassVar[type[SpatialBlock]]
    stage_mixin: ClassVar[type[SpatialStage]]
    parts: ClassVar[tuple[str, ...]]

    @classmethod
    def stage(cls, core: nn.Module) -> nn.Module:
        """The stage that is sparsified."""
        raise NotImplementedError

    @classmethod
    def host(cls, core: nn.Module) -> nn.Module:
        """The module that holds ``score_predictor``."""
        raise NotImplementedError

    @classmethod
    def check(cls, block: nn.Module) -> str | None:
        """What a block has that stands in the way; ``None``: nothing."""
        raise NotImplementedError

    @classmethod
    def channels(cls, block: nn.Module) -> int:
        """C of a block."""
        raise NotImplementedError

    @classmethod
    def new_parts(cls, channels: int) -> dict[str, nn.Module | nn.Parameter]:
        """The fast path of one block, new, by name."""
        raise NotImplementedError

    @classmethod
    def fast_layers(cls, channels: int) -> nn.Sequential:
        """Norm and linear layer, drawn as the published code does."""
        linear = nn.Linear(channels, channels)
        nn.init.trunc_normal_(linear.weight, std=0.02)
        nn.init.zeros_(linear.bias)
        return nn.Sequential(nn.LayerNorm(channels, eps=cls.eps), linear)

    @staticmethod
    def third(core: nn.Module, stages: nn.Module | nn.Sequential) -> nn.Module:
        """The third of four stages."""
        found = list(stages)  # type: ignore[arg-type]
        if len(found) != 4:
            raise ValueError(f"Expected a {type(core).__name__} of 4 stages (got {len(found)}). The third one is used.")
        return found[2]
