"""Statistics of an attention map, each by the cheapest exact way; the map itself only where it cannot be avoided."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

CHUNK = 512  # rows of the map at a time


class AttentionStats:
    """Lazily computed statistics of one layer's attention, over its patch tokens.

    Nothing is computed until a method is called, so that a strategy which asks for nothing leaves the fused kernel
    alone. Where the layer has computed its map in the open, they are read from that map; otherwise from queries and
    keys: one row for the class token, row chunks for sums over columns. Everything is float32.

    Args:
        project: Returns queries and keys ``[B, H, P+N, D]``; called at most once.
        scale: Factor on the products.
        num_prefix: P.
        bias: Additive mask that the layer used, broadcastable to ``[B, H, P+N, P+N]``, or ``None``.
        attention: The map that the layer has used, ``[B, H, P+N, P+N]``: after softmax, as edited.
        keys: Returns what :meth:`heads_of_keys` gives, where there is a cheaper way than through ``project``.
        values: Returns values ``[B, H, P+N, D]``; ``None``: nobody knows them.
    """

    def __init__(
        self,
        project: Callable[[], tuple[Tensor, Tensor]] | None,
        scale: float,
        num_prefix: int,
        bias: Tensor | None = None,
        *,
        attention: Tensor | None = None,
        keys: Callable[[], Tensor] | None = None,
        values: Callable[[], Tensor] | None = None,
    ) -> None:
        self._project = project
        self._qk: tuple[Tensor, Tensor] | None = None
        self._sums: tuple[Tensor, Tensor] | None = None
        self.scale = scale
        self.num_prefix = num_prefix
        self._bias: Tensor | Callable[[], Tensor | None] | None = bias
        self.attention = attention
        self._keys = keys
        self._values = values

    @classmethod
    def from_map(cls, attention: Tensor, num_prefix: int = 0) -> AttentionStats:
        """Statistics of a map ``[B, H, P+N, P+N]`` that is there already. It has no keys."""
        return cls(None, 1.0, num_prefix, attention=attention)

    def _queries_keys(self) -> tuple[Tensor, Tensor]:
        if self._qk is None:
            if self._project is None:
                raise ValueError("Expected attention with queries and keys (got a map alone).")
            self._qk = self._project()
        return self._qk

    @property
    def tokens(self) -> int:
        """P+N, the side of the map."""
        return self._queries_keys()[0].size(2) if self.attention is None else self.attention.size(2)

    @property
    def bias(self) -> Tensor | None:
        """What was added to the logits, broadcastable to ``[B, H, P+N, P+N]``, or ``None``."""
        if callable(self._bias):
            self._bias = self._bias()
        return self._bias

    def with_bias(self, make: Callable[[], Tensor | None]) -> AttentionStats:
        """These statistics with a bias that is made when it is first read."""
        self._bias = make
        return self

    def heads_of_keys(self) -> Tensor:
        """Keys for matching, ``[B, H, P+N, D]``; H is 1 where the mean over heads was cheaper to make."""
        return self._queries_keys()[1] if self._keys is None else self._keys()

    def keys(self) -> Tensor:
        """Keys of the patch tokens, mean over heads, ``[B, N, D]`` in float32 or wider."""
        keys = self.heads_of_keys()[:, :, self.num_prefix :]
        return keys.mean(dim=1, dtype=torch.promote_types(keys.dtype, torch.float32))

    def values(self) -> Tensor:
        """Values of all tokens, prefix tokens in front, as the attention has mixed them, ``[B, H, P+N, D]``.

        Cost: none where the block projects them by a module of its own; blocks over ``nn.MultiheadAttention`` project
        the input of the attention again, ``C^2`` a token.

        Raises:
            ValueError: For an attention map alone, which has none.
        """
        if self._values is None:
            raise ValueError("Expected attention with values (got a map alone).")
        return self._values()

    def value_norms(self) -> Tensor:
        r"""How long each token's values are, all heads together, ``[B, P+N]`` in float32 or wider.

        .. math:: \nu_j = \big(\textstyle\sum_h \lVert V^h_j \rVert^2\big)^{1/2}
        """
        values = self.values()
        with torch.autocast(values.device.type, enabled=False):
            rows = values.transpose(1, 2).flatten(2)
            return torch.linalg.vector_norm(rows, dim=2, dtype=torch.promote_types(rows.dtype, torch.float32))

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows ``start : stop`` of the softmaxed map, ``[B, H, stop - start, P+N]``; nothing else is made."""
        if self.attention is not None:
            return self.attention[:, :, start:stop].float()
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
        if self.attention is not None or self.bias is not None:
            return self.rows(0, 1)[:, :, 0, self.num_prefix :]
        q, k = self._queries_keys()
        with torch.autocast(q.device.type, enabled=False):
            # All heads in one product of keys as they lie in memory with a block-diagonal query: three times as fast
            # as a product for each head.
            row = q[:, :, 0].float() * self.scale
            heads = torch.eye(row.size(1), dtype=row.dtype, device=row.device)
            query = (row[..., None] * heads[:, None]).flatten(1, 2)  # [B, H*D, H]
            logits = torch.matmul(k.float().transpose(1, 2).flatten(2), query)
            return logits.softmax(dim=1).transpose(1, 2)[..., self.num_prefix :]

    def column_sums(self) -> Tensor:
        """Attention that each patch token receives from all tokens, ``[B, H, N]``, prefix tokens and itself included.

        Cost: one pass over the map where the layer has made it; else the map, in row chunks, once for this and
        :meth:`diagonal` together.
        """
        return self._columns()[0]

    def diagonal(self) -> Tensor:
        """Attention that each patch token pays itself, ``[B, H, N]``. Cost: as :meth:`column_sums`, or a view."""
        return self._columns()[1]

    def _columns(self) -> tuple[Tensor, Tensor]:
        if self._sums is None:
            step = CHUNK if self.attention is None else self.tokens
            sums, own = [], []
            for i in range(0, self.tokens, step):
                rows = self.rows(i, min(i + step, self.tokens)) if self.attention is None else self.attention
                sums.append(rows.sum(dim=2, dtype=torch.float32))
                own.append(rows.diagonal(offset=i, dim1=2, dim2=3).float())
            total = sums[0] if len(sums) == 1 else torch.stack(sums).sum(dim=0)
            self._sums = total[..., self.num_prefix :], torch.cat(own, dim=2)[..., self.num_prefix :]
        return self._sums
