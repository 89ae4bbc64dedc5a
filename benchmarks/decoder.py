"""A small language model's decoder, to time the prefill of image tokens and text."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Decoder(nn.Module):
    """Decoder layers as language models have them: causal attention and an MLP, both before norms."""

    def __init__(self, layers: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm": nn.LayerNorm(width),
                    "qkv": nn.Linear(width, 3 * width, bias=False),
                    "out": nn.Linear(width, width, bias=False),
                    "mlp": nn.Sequential(
                        nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width)
                    ),
                }
            )
            for _ in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Runs ``[B, N, C]``."""
        for layer in self.layers:
            qkv = layer["qkv"](layer["norm"](x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(*qkv, is_causal=True).transpose(1, 2).flatten(2)
            x = x + layer["out"](mixed)
            x = x + layer["mlp"](x)
        return x
