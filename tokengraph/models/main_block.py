"""The main block of Fast-iTPN: attention and a SwiGLU MLP, both with layer scale."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokengraph.models.gathering import Attend, full_attention
from tokengraph.models.stem import EPS, DropPath


class MainAttention(nn.Module):
    """Attention with separate projections; queries and values have a bias, keys have none."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, attend: Attend = full_attention) -> tuple[Tensor, Tensor]:
        """Maps ``[B, n, C]`` to ``[B, n, C]``; also returns the keys ``[B, n, H, D]``."""
        shape = (*x.shape[:2], self.heads, x.size(2) // self.heads)
        q = F.linear(x, self.q_proj.weight, self.q_bias).view(shape)
        k = self.k_proj(x).view(shape)
        v = F.linear(x, self.v_proj.weight, self.v_bias).view(shape)
        return self.proj(attend(q, k, v).flatten(2)), k


class SwiGLU(nn.Module):
    """The SwiGLU MLP ``w3(ffn_ln(silu(w1 x) * (w2 x)))``."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.w1 = nn.Linear(width, hidden)
        self.w2 = nn.Linear(width, hidden)
        self.ffn_ln = nn.LayerNorm(hidden, eps=EPS)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[..., C]`` to ``[..., C]``."""
        return self.w3(self.ffn_ln(F.silu(self.w1(x)) * self.w2(x)))


class MainBlock(nn.Module):
    r"""A block of stage 3; only these blocks mix positions.

    .. math::
        x \leftarrow x + \gamma_1 \odot \mathrm{attn}(\mathrm{LN}_1 x), \qquad
        x \leftarrow x + \gamma_2 \odot \mathrm{mlp}(\mathrm{LN}_2 x)

    Args:
        width: C.
        heads: H.
        mlp_ratio: Hidden width over C.
        layer_scale: Initial value of both gammas.
        drop_path: Stochastic depth rate of each branch in training.

    Source: Tian et al., *Fast-iTPN*, TPAMI 2024, and its official code.
    """

    def __init__(
        self, width: int, heads: int, *, mlp_ratio: float = 3.0, layer_scale: float = 0.1, drop_path: float = 0.0
    ):
        super().__init__()
        self.gamma_1 = nn.Parameter(torch.full((width,), layer_scale))
        self.gamma_2 = nn.Parameter(torch.full((width,), layer_scale))
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attn = MainAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = SwiGLU(width, int(mlp_ratio * width))
        self.drop_path = DropPath(drop_path)

    def run(self, x: Tensor, attend: Attend = full_attention) -> tuple[Tensor, Tensor]:
        """Runs the block with a given attention function, and also returns its keys.

        Args:
            x: Tokens ``[B, n, C]``.
            attend: A function of queries, keys and values, ``[B, n, H, D]`` each.

        Returns:
            Tokens ``[B, n, C]``; keys ``[B, n, H, D]``, without a bias.
        """
        mixed, keys = self.attn(self.norm1(x), attend)
        return self.feed(x + self.drop_path(self.gamma_1 * mixed)), keys

    def feed(self, x: Tensor) -> Tensor:
        """Runs the MLP half: ``[..., C]`` to ``[..., C]``."""
        return x + self.drop_path(self.gamma_2 * self.mlp(self.norm2(x)))

    def forward(self, x: Tensor) -> Tensor:
        """Runs the official block: ``[B, n, C]`` to ``[B, n, C]``."""
        return self.run(x)[0]
