"""Statistics of an attention map, each by the cheapest exact way; the map itself only where it cannot be avoided."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class AttentionStats:
    """Lazily computed statistics of one layer's attention, over its patch tokens.

    Nothing is computed until a method is called, so that a strategy which asks for nothing leaves the fused kernel
    alone. Everything is float32.

    Args:
        project: Returns queries and keys ``[B, H, P+N, D]``; called at most once.
        scale: Factor on the products.
        num_prefix: P.
        bias: Additive mask that the layer used, broadcastable to ``[B, H, P+N, P+N]``, or ``None``.
    """

    def __init__(
        self, project: Callable[[], tuple[Tensor, Tensor]], scale: float, num_prefix: int, bias: Tensor | None = None
    ) -> None:
        self._project = project
        self._qk: tuple[Tensor, Tensor] | None = None
        self.scale = scale
        self.num_prefix = num_prefix
        self.bias = bias

    def _queries_keys(self) -> tuple[Tensor, Tensor]:
        if self._qk is None:
            self._qk = self._project()
        return self._qk

    def keys(self) -> Tensor:
        """Keys of the patch tokens, mean over heads, ``[B, N, D]`` in the layer's dtype."""
        return self._queries_keys()[1][:, :, self.num_prefix :].mean(dim=1)

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows ``start : stop`` of the softmaxed map, ``[B, H, stop - start, P+N]``; nothing else is made."""
        q, k = self._queries_keys()
        with torch.autocast(q.device.type, enabled=False):
            logits = torch.matmul(q[:, :, start:stop].float() * self.scale, k.float().transpose(2, 3))
            if self.bias is not None:
                full = self.bias.size(-2) > 1
                bias = self.bias[..., start:stop, :] if full else self.bias
                if bias.dtype == torch.bool:
                    bias = torch.zeros_like(bias, dtype=torch.float32).masked_fill(~bias, -torch.inf)
                logits = logits + bias.float()
            return logits.softmax(dim=-1)

    def class_row(self) -> Tensor:
        """What the first token pays each patch token, ``[B, H, N]``. Cost ``O(H N D)``: one row, not the map."""
        return self.rows(0, 1)[:, :, 0, self.num_prefix :]

    def column_sums(self, chunk: int = 512) -> Tensor:
        """Attention that each patch token receives from all tokens, ``[B, H, N]``. Cost: the map, in row chunks."""
        total = self._queries_keys()[0].size(2)
        parts = [self.rows(i, min(i + chunk, total)).sum(dim=2) for i in range(0, total, chunk)]
        return torch.stack(parts).sum(dim=0)[..., self.num_prefix :]

    def diagonal(self, chunk: int = 512) -> Tensor:
        """Attention that each patch token pays itself, ``[B, H, N]``. Cost: the map, in row chunks."""
        total = self._queries_keys()[0].size(2)
        parts = []
        for i in range(0, total, chunk):
            rows = self.rows(i, min(i + chunk, total))
            parts.append(rows.diagonal(offset=i, dim1=2, dim2=3))
        return torch.cat(parts, dim=2)[..., self.num_prefix :]
