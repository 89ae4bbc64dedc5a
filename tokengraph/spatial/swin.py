"""Slow and fast paths in timm's Swin."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tokengraph.spatial.block import SpatialBlock
from tokengraph.spatial.family import Family
from tokengraph.spatial.stage import SpatialStage


class SpatialSwinBlock(SpatialBlock):
    """Swin: window attention adds to the stream; the MLP reads the stream and adds to it."""

    norm1: Any
    norm2: Any
    mlp: Any
    fastmlp: Any
    drop_path1: Any
    drop_path2: Any
    _attn: Any

    def mix(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Window attention by the block's own method, with its shift, padding, mask and bias."""
        x = x + self.drop_path1(self._attn(self.norm1(x)))
        return x, x

    def slow(self, x: Tensor) -> Tensor:
        """Norm and MLP."""
        return self.mlp(self.norm2(x))

    def fast(self, x: Tensor) -> Tensor:
        """Norm and one linear layer."""
        return self.fastmlp.fc1(x)

    def drop(self, x: Tensor) -> Tensor:
        """Stochastic depth."""
        return self.drop_path2(x)


class FastMlp(nn.Module):
    """A fast path under its published name, ``fc1``."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.fc1 = layers

    def forward(self, x: Tensor) -> Tensor:
        """Norm and linear layer, ``[..., C]``."""
        return self.fc1(x)


class SwinFamily(Family):
    """timm's ``SwinTransformer``, version 1: tiny, small, base, large."""

    eps = 1e-5
    block_mixin = SpatialSwinBlock
    stage_mixin = SpatialStage
    parts = ("fastmlp",)

    @classmethod
    def stage(cls, core: nn.Module) -> nn.Module:
        """The third of four layers."""
        return cls.third(core, core.layers)  # type: ignore[arg-type]

    @classmethod
    def host(cls, core: nn.Module) -> nn.Module:
        """The published checkpoints have ``score_predictor`` in the third layer."""
        return cls.stage(core)

    @classmethod
    def check(cls, block: nn.Module) -> str | None:
        """Returns ``None``: every block will do."""
        return None

    @classmethod
    def channels(cls, block: nn.Module) -> int:
        """C."""
        return block.dim  # type: ignore[return-value]

    @classmethod
    def new_parts(cls, channels: int) -> dict[str, nn.Module | nn.Parameter]:
        """Makes a fast path under its published names."""
        return {"fastmlp": FastMlp(cls.fast_layers(channels))}
