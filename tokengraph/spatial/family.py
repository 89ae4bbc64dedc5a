"""The base class of the model families that DynamicSpatial supports."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from tokengraph.spatial.block import SpatialBlock
from tokengraph.spatial.stage import SpatialStage


class Family:
    """How the models of one family are built: their third stage, and the parts that its blocks get, by name."""

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
        """Names the part that rules a block out; ``None``: no part does."""
        raise NotImplementedError

    @classmethod
    def channels(cls, block: nn.Module) -> int:
        """C of a block."""
        raise NotImplementedError

    @classmethod
    def new_parts(cls, channels: int) -> dict[str, nn.Module | nn.Parameter]:
        """Makes the fast path of one block: its parts, by name."""
        raise NotImplementedError

    @classmethod
    def fast_layers(cls, channels: int) -> nn.Sequential:
        """Makes norm and linear layer, initialised as in the published code."""
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
