"""Slow and fast paths in timm's ConvNeXt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tokengraph.spatial.block import SpatialBlock
from tokengraph.spatial.family import Family
from tokengraph.spatial.stage import SpatialStage


class SpatialConvNeXtBlock(SpatialBlock):
    """ConvNeXt: the convolution reads the stream; the MLP reads the convolution and adds to the stream."""

    channels_first = True
    conv_dw: Any
    norm: Any
    mlp: Any
    gamma: Any
    drop_path: Any
    fast_path: Any
    fast_path_gamma: Any

    def mix(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Depthwise convolution; see :meth:`SpatialBlock.mix`."""
        return self.conv_dw(x), None

    def slow(self, x: Tensor) -> Tensor:
        """Norm, MLP, layer scale."""
        y = self.mlp(self.norm(x))
        return y if self.gamma is None else y * self.gamma

    def fast(self, x: Tensor) -> Tensor:
        """Norm, one linear layer, layer scale."""
        return self.fast_path(x) * self.fast_path_gamma

    def drop(self, x: Tensor) -> Tensor:
        """Stochastic depth."""
        return self.drop_path(x)


class SpatialConvNeXtStage(SpatialStage):
    """The third stage of a ConvNeXt."""

    channels_first = True


class ConvNeXtFamily(Family):
    """timm's ``ConvNeXt`` with linear MLPs: tiny, small, base and the larger ones."""

    eps = 1e-6
    block_mixin = SpatialConvNeXtBlock
    stage_mixin = SpatialConvNeXtStage
    parts = ("fast_path", "fast_path_gamma")

    @classmethod
    def stage(cls, core: nn.Module) -> nn.Module:
        """The third of four stages."""
        return cls.third(core, core.stages)  # type: ignore[arg-type]

    @classmethod
    def host(cls, core: nn.Module) -> nn.Module:
        """The published checkpoints have ``score_predictor`` at the top."""
        return core

    @classmethod
    def check(cls, block: nn.Module) -> str | None:
        """Names the part that rules a block out; ``None``: no part does."""
        if block.use_conv_mlp:
            return "1x1 convolutions in its MLP (conv_mlp=True)"
        if not isinstance(getattr(block.mlp, "grn", nn.Identity()), nn.Identity):
            return "a global response norm, which reads all positions of the MLP"
        return None

    @classmethod
    def channels(cls, block: nn.Module) -> int:
        """C."""
        return block.conv_dw.out_channels  # type: ignore[union-attr,return-value]

    @classmethod
    def new_parts(cls, channels: int) -> dict[str, nn.Module | nn.Parameter]:
        """Makes a fast path under its published names."""
        return {"fast_path": cls.fast_layers(channels), "fast_path_gamma": nn.Parameter(torch.full((channels,), 1e-6))}
