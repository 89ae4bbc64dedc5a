"""The stem of Fast-iTPN: 1x1 and non-overlapping convolutions, so units of 16 x 16 pixels do not mix.

All layers run on channels-last rows, ``[B, H, W, C]``, on which these convolutions are plain matrix products. Their
weights keep the shapes of convolution kernels, as in the official checkpoints.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-6  # eps of every LayerNorm in the network
ROWS = 1024


class PatchEmbed(nn.Module):
    """Embeds patches of 4 x 4 pixels: ``[B, 3, H, W]`` to rows ``[B, H/4, W/4, C]``; no norm, no activation."""

    def __init__(self, width: int, channels: int = 3):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, 4, stride=4)

    def forward(self, images: Tensor) -> Tensor:
        """Embeds ``[B, 3, H, W]``, H and W multiples of 4, as ``[B, H/4, W/4, C]``."""
        batch, channels, height, width = images.shape
        cells = images.reshape(batch, channels, height // 4, 4, width // 4, 4).permute(0, 2, 4, 1, 3, 5)
        return F.linear(cells.flatten(3), self.proj.weight.flatten(1), self.proj.bias)


class DropPath(nn.Module):
    """Stochastic depth: in training, drops a branch for some images and scales it up for the others."""

    def __init__(self, rate: float = 0.0):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[B, ...]`` to ``[B, ...]``."""
        if not self.training or self.rate == 0.0:
            return x
        keep = torch.rand(x.size(0), *[1] * (x.dim() - 1), device=x.device) >= self.rate
        return x * keep.to(x.dtype) / max(1.0 - self.rate, 1e-6)


class Pointwise(nn.Conv2d):
    """A 1x1 convolution over rows ``[..., C]``."""

    def __init__(self, width: int, out: int):
        super().__init__(width, out, 1)

    def forward(self, input: Tensor) -> Tensor:
        """Maps ``[..., C]`` to ``[..., C']``."""
        return F.linear(input, self.weight.flatten(1), self.bias)


class ConvMlp(nn.Module):
    """The MLP ``fc2(ffn_ln(GELU(fc1(x))))`` over rows; the pyramid's form has no ``ffn_ln``."""

    def __init__(self, width: int, hidden: int, *, sub_norm: bool = True):
        super().__init__()
        self.fc1 = Pointwise(width, hidden)
        self.ffn_ln = nn.LayerNorm(hidden, eps=EPS) if sub_norm else nn.Identity()
        self.fc2 = Pointwise(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[..., C]`` to ``[..., C]``."""
        return self.fc2(self.ffn_ln(F.gelu(self.fc1(x))))


class StemBlock(nn.Module):
    r"""A residual channel MLP: :math:`x + \mathrm{mlp}(\mathrm{LN}\,x)`, no attention and no layer scale.

    Args:
        width: C.
        hidden: Width inside the MLP.
        sub_norm: Whether the MLP has a LayerNorm inside; the stem does, the pyramid does not.
        drop_path: Stochastic depth rate of the MLP in training.
    """

    def __init__(self, width: int, hidden: int, *, sub_norm: bool = True, drop_path: float = 0.0):
        super().__init__()
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = ConvMlp(width, hidden, sub_norm=sub_norm)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[B, ..., C]`` to ``[B, ..., C]``."""
        if x.is_cpu and not (self.training or torch.is_grad_enabled() or torch.compiler.is_compiling()):
            # Rows are independent: in chunks, the hidden activations stay in a core's cache.
            rows = [r + self.mlp(self.norm2(r)) for r in x.flatten(0, -2).split(ROWS)]
            return rows[0].view(x.shape) if len(rows) == 1 else torch.cat(rows).view(x.shape)
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Merge(nn.Module):
    """LayerNorm, then a 2x2 convolution of stride 2: rows ``[B, H, W, C]`` to ``[B, H/2, W/2, 2C]``."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.reduction = nn.Conv2d(width, 2 * width, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[B, H, W, C]``, H and W even, to ``[B, H/2, W/2, 2C]``."""
        batch, height, width, channels = x.shape
        cells = self.norm(x).view(batch, height // 2, 2, width // 2, 2, channels).permute(0, 1, 3, 2, 4, 5)
        return F.linear(cells.flatten(3), self.reduction.weight.permute(0, 2, 3, 1).flatten(1), self.reduction.bias)


class Split(nn.Module):
    """LayerNorm, then a 2x2 transposed convolution of stride 2: ``[B, H, W, C]`` to ``[B, 2H, 2W, C']``."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.reduction = nn.ConvTranspose2d(width, out, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[B, H, W, C]`` to ``[B, 2H, 2W, C']``."""
        batch, height, width, _ = x.shape
        weight, bias = self.reduction.weight, self.reduction.bias
        cells = F.linear(self.norm(x), weight.permute(2, 3, 1, 0).flatten(0, 2))
        cells = cells.view(batch, height, width, 2, 2, weight.size(1)).permute(0, 1, 3, 2, 4, 5)
        out = cells.reshape(batch, 2 * height, 2 * width, weight.size(1))
        return out if bias is None else out + bias.to(out.dtype)
