"""Slow and fast paths in timm's ConvNeXt and ConvNeXt V2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tokengraph.flat.segment import TINY, segment_sum
from tokengraph.spatial.block import SpatialBlock
from tokengraph.spatial.family import Family
from tokengraph.spatial.stage import SpatialStage

NORMS = ("LayerNorm", "LayerNorm2d", "RmsNorm", "RmsNorm2d", "SimpleNorm", "SimpleNorm2d")  # position by position


class SpatialConvNeXtBlock(SpatialBlock):
    """ConvNeXt: the convolution reads the stream; the MLP reads the convolution and adds to the stream.

    The MLP may consist of 1x1 convolutions. The global response norm of version 2 compares the lengths of hidden
    channels over an image; here it takes them over its slow positions, in training by the mask, as the fast path has no
    hidden channels.
    """

    channels_first = True
    conv_dw: Any
    use_conv_mlp: bool
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
        """Norm, MLP, layer scale; a response norm sees all positions of ``[B, H, W, C]``."""
        return self._scaled(self._by_row(self.mlp, self._by_row(self.norm, x)))

    def slow_rows(self, rows: Tensor, image: Tensor, images: int) -> Tensor:
        """See :meth:`SpatialBlock.slow_rows`."""
        if not _has_response_norm(self):
            return self.slow(rows)
        hidden = self._hidden(rows)
        squared = segment_sum(hidden.square(), image, images)
        length = squared.clamp_min(TINY).sqrt()  # finite gradients where a channel is zero
        return self._respond(hidden, self._response(length).index_select(0, image))

    def slow_map(self, x: Tensor, mask: Tensor) -> Tensor:
        """See :meth:`SpatialBlock.slow_map`."""
        if not _has_response_norm(self):
            return self.slow(x)
        hidden = self._hidden(x)
        length = torch.linalg.vector_norm(hidden * mask.to(hidden.dtype), dim=(1, 2), keepdim=True)
        return self._respond(hidden, self._response(length))

    def _hidden(self, x: Tensor) -> Tensor:
        """The MLP up to its response norm, ``[..., C]`` to ``[..., D]``."""
        return self.mlp.drop1(self.mlp.act(self._by_row(self.mlp.fc1, self._by_row(self.norm, x))))

    def _response(self, length: Tensor) -> Tensor:
        """Lengths of channels over those of an average channel, ``[..., D]``."""
        return length / (length.mean(dim=-1, keepdim=True) + self.mlp.grn.eps)

    def _respond(self, hidden: Tensor, response: Tensor) -> Tensor:
        """The response norm and the rest of the MLP."""
        norm = self.mlp.grn
        hidden = hidden + norm.bias + norm.weight * (hidden * response.to(hidden.dtype))
        return self._scaled(self.mlp.drop2(self._by_row(self.mlp.fc2, hidden)))

    def _by_row(self, part: Any, x: Tensor) -> Tensor:
        """Applies a part of the MLP to ``[..., C]``; one of convolutions reads rows as the positions of one image."""
        if not self.use_conv_mlp:
            return part(x)
        some = torch.compiler.is_compiling() or x.size(0) > 0  # a convolution takes no image without positions
        rows = x if x.dim() == 4 else x[None, :, None] if some else x[:, None, None]
        out = part(rows.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return out if x.dim() == 4 else out.reshape(x.size(0), out.size(3))

    def _scaled(self, y: Tensor) -> Tensor:
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
    """timm's ``ConvNeXt``, versions 1 and 2, with linear layers or 1x1 convolutions in its MLPs."""

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
        norm = type(block.norm).__name__
        return None if norm.removesuffix("Fp32") in NORMS else f"{norm}, which may read other positions or images"

    @classmethod
    def channels(cls, block: nn.Module) -> int:
        """C."""
        return block.conv_dw.out_channels  # type: ignore[union-attr,return-value]

    @classmethod
    def new_parts(cls, channels: int) -> dict[str, nn.Module | nn.Parameter]:
        """Makes a fast path under its published names."""
        return {"fast_path": cls.fast_layers(channels), "fast_path_gamma": nn.Parameter(torch.full((channels,), 1e-6))}


def _has_response_norm(block: Any) -> bool:
    return not isinstance(getattr(block.mlp, "grn", nn.Identity()), nn.Identity)
