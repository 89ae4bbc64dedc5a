"""Statistics of an attention map, each computed exactly and without the whole map where possible."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tokengraph.attention.keep_mask import KeepMask
from tokengraph.flat.segment import as_type
from tokengraph.flat.tables import table

CHUNK = 512  # rows of the map computed at a time


class AttentionStats:
    """Statistics of one layer's attention over its patch tokens, computed when a method asks for them.

    A strategy that calls no method costs nothing, and its layer keeps the fused kernel. If the layer has computed its
    map anyway, the methods read that map. Otherwise they compute from queries and keys only what they need: one row
    for the class token, chunks of rows for column sums. All results are float32, unless a method says otherwise.

    Args:
        project: Returns queries and keys ``[B, H, P+N, D]``; called at most once.
        scale: Factor on the products of queries and keys.
        num_prefix: P.
        bias: Additive mask that the layer used, broadcastable to ``[B, H, P+N, P+N]``, or ``None``.
        attention: The map that the layer used, ``[B, H, P+N, P+N]``: after softmax and edit.
        keys: A cheaper way to compute :meth:`heads_of_keys` than ``project``.
        values: Returns values ``[B, H, P+N, D]``; ``None``: unknown.
        logits: A cheaper way to compute :meth:`class_logits` of all tokens, ``[B, P+N]``, than ``project``.
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
        logits: Callable[[], Tensor] | None = None,
    ) -> None:
        self._project = project
        self._qk: tuple[Tensor, Tensor] | None = None
        self._sums: tuple[Tensor, Tensor] | None = None
        self._valid: Tensor | None = None
        self.scale = scale
        self.num_prefix = num_prefix
        self._bias: Tensor | Callable[[], Tensor | None] | None = bias
        self.attention = attention
        self._keys = keys
        self._values = values
        self._logits = logits

    @classmethod
    def from_map(cls, attention: Tensor, num_prefix: int = 0) -> AttentionStats:
        """Makes statistics of a given map ``[B, H, P+N, P+N]``, after softmax. They have no keys."""
        return cls(None, 1.0, num_prefix, attention=attention)

    def _queries_keys(self) -> tuple[Tensor, Tensor]:
        if self._qk is None:
            if self._project is None:
                raise ValueError("Expected attention with queries and keys (got only a map).")
            self._qk = self._project()
        return self._qk

    @property
    def tokens(self) -> int:
        """P+N, the side of the map."""
        return self._queries_keys()[0].size(2) if self.attention is None else self.attention.size(2)

    @property
    def bias(self) -> Tensor | None:
        """The bias on the logits, broadcastable to ``[B, H, P+N, P+N]``, or ``None``."""
        if callable(self._bias):
            self._bias = self._bias()
        return self._bias

    def with_bias(self, make: Callable[[], Tensor | None]) -> AttentionStats:
        """Sets a bias that ``make`` builds when it is first read; returns ``self``."""
        self._bias = make
        return self

    def without_padding(self, valid: Tensor | None) -> AttentionStats:
        """Leaves queries out of sums where ``valid``, ``[B, P+N]`` bool, is False; ``None``: no padding.

        Keys of padding have no attention by the layer's mask. Returns ``self``.
        """
        self._valid = valid
        return self

    def heads_of_keys(self) -> Tensor:
        """Returns keys for matching, ``[B, H, P+N, D]``; H is 1 if the mean over heads was cheaper to compute."""
        return self._queries_keys()[1] if self._keys is None else self._keys()

    def keys(self) -> Tensor:
        """Returns the keys of the patch tokens, averaged over heads: ``[B, N, D]`` in float32 or wider."""
        keys = self.heads_of_keys()[:, :, self.num_prefix :]
        wide = torch.promote_types(keys.dtype, torch.float32)
        return as_type(keys[:, 0], wide) if keys.size(1) == 1 else keys.mean(dim=1, dtype=wide)

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
        """Computes only rows ``start : stop`` of the map after softmax, ``[B, H, stop - start, P+N]``."""
        if self.attention is not None:
            return as_type(self.attention[:, :, start:stop], torch.float32)
        q, k = self._queries_keys()
        with torch.autocast(q.device.type, enabled=False):
            logits = torch.matmul(
                as_type(q[:, :, start:stop], torch.float32) * self.scale, as_type(k, torch.float32).transpose(2, 3)
            )
            if isinstance(self.bias, KeepMask):
                return self.bias.rows(logits, start)
            if self.bias is not None:
                full = self.bias.size(-2) > 1
                bias = self.bias[..., start:stop, :] if full else self.bias
                if bias.dtype == torch.bool:
                    bias = torch.zeros_like(bias, dtype=torch.float32).masked_fill(~bias, -torch.inf)
                logits = logits + as_type(bias, torch.float32)
            return logits.softmax(dim=-1)

    def whole_map(self) -> Tensor:
        """Returns the map, ``[B, H, P+N, P+N]`` float32. Cost: that of the map, unless the layer computed it."""
        return self.rows(0, self.tokens)

    def class_row(self) -> Tensor:
        """Returns the attention that the class token pays to each patch token, ``[B, H, N]``.

        Cost: ``O(H N D)`` an image: one row, not the map.
        """
        bias = None if self.attention is not None else self.bias
        added = isinstance(bias, Tensor) and bias.dim() == 4 and bias.is_floating_point()
        if self.attention is not None or (bias is not None and not added):
            return self.rows(0, 1)[:, :, 0, self.num_prefix :]
        q, k = self._queries_keys()
        with torch.autocast(q.device.type, enabled=False):
            # One product of the keys, in their memory order, with a block-diagonal query for all heads: three times as
            # fast as one product for each head.
            row = as_type(q[:, :, 0], torch.float32)
            heads = _eye(row.size(1), self.scale, row.device)
            query = (row[..., None] * heads[:, None]).flatten(1, 2)  # [B, H*D, H]
            logits = torch.matmul(as_type(k, torch.float32).transpose(1, 2).flatten(2), query)
            if bias is not None:
                logits = logits + as_type(bias[:, :, 0].transpose(1, 2), torch.float32)
            return logits.softmax(dim=1).transpose(1, 2)[..., self.num_prefix :]

    def class_logits(self) -> Tensor:
        """Returns the class token's query times each patch token's key, mean over heads, ``[B, N]``: no scale, no bias.

        Cost: ``O(H N D)`` an image behind the projections.
        """
        if self._logits is not None:
            return self._logits()[:, self.num_prefix :]
        q, k = self._queries_keys()
        with torch.autocast(q.device.type, enabled=False):
            rows = as_type(k[:, :, self.num_prefix :], torch.float32) * as_type(q[:, :, :1], torch.float32)
            return rows.sum(dim=3).mean(dim=1)

    def mean_logits(self) -> Tensor:
        """Returns the scaled logits of all tokens, mean over heads, without the layer's bias: ``[B, P+N, P+N]``.

        Padding counts ``-inf`` as key. Cost: one product of all queries and keys, heads together.
        """
        q, k = self._queries_keys()
        with torch.autocast(q.device.type, enabled=False):
            q, k = (as_type(t, torch.float32).transpose(1, 2).flatten(2) for t in (q, k))
            logits = torch.matmul(q, k.transpose(1, 2)) * (self.scale / self._queries_keys()[0].size(1))
            if self._valid is not None:
                logits = logits.masked_fill(~self._valid[:, None], -torch.inf)
            return logits

    def column_sums(self) -> Tensor:
        """Returns the attention that each patch token receives from all tokens, ``[B, H, N]``.

        All tokens include prefix tokens and the token itself, but no padding.

        Cost: one pass over the map if the layer computed it; otherwise the map is computed in chunks of rows, once for
        this method and :meth:`diagonal` together.
        """
        return self._columns()[0]

    def diagonal(self) -> Tensor:
        """Returns the attention that each patch token pays to itself, ``[B, H, N]``. Cost: as :meth:`column_sums`."""
        return self._columns()[1]

    def _columns(self) -> tuple[Tensor, Tensor]:
        if self._sums is None:
            step = CHUNK if self.attention is None else self.tokens
            sums, own = [], []
            for i in range(0, self.tokens, step):
                rows = self.rows(i, min(i + step, self.tokens)) if self.attention is None else self.attention
                if self._valid is not None:
                    rows = rows.masked_fill(~self._valid[:, None, i : i + step, None], 0.0)
                sums.append(rows.sum(dim=2, dtype=torch.float32))
                own.append(as_type(rows.diagonal(offset=i, dim1=2, dim2=3), torch.float32))
            total = sums[0] if len(sums) == 1 else torch.stack(sums).sum(dim=0)
            diagonal = own[0] if len(own) == 1 else torch.cat(own, dim=2)
            self._sums = total[..., self.num_prefix :], diagonal[..., self.num_prefix :]
        return self._sums


def _eye(heads: int, scale: float, device: torch.device) -> Tensor:
    """Returns ``scale`` times the identity, ``[H, H]`` float32; callers must not write into it."""
    if torch.compiler.is_compiling():
        return torch.eye(heads, device=device, dtype=torch.float32) * scale
    return _scaled_eye(heads, float(scale).hex(), str(device))


@table(64)
def _scaled_eye(heads: int, scale: str, device: str) -> Tensor:
    return torch.eye(heads, device=device, dtype=torch.float32) * float.fromhex(scale)
