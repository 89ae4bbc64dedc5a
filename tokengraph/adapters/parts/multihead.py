"""Adapters for blocks with an ``nn.MultiheadAttention``: attention under any mask, and its statistics."""

from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from tokengraph.adapters.base import Adapter
from tokengraph.adapters.coarse import KEPT
from tokengraph.adapters.parts.heads import split_heads, split_qkv
from tokengraph.adapters.parts.hooks import check_called_alone, is_called_alone
from tokengraph.attention.stats import AttentionStats


class MultiheadAdapter(Adapter):
    """Pre-norm blocks whose attention is an ``nn.MultiheadAttention``.

    Queries, keys and values are made inside that module, by parameters. Where a strategy asks for them they are made
    again from its input, which :meth:`attend` leaves with the block: a forward hook inside a torch layer would turn its
    inference fast path off and change last bits.

    Attributes:
        norm: Name of the norm in front of the attention.
        attention: Name of the ``nn.MultiheadAttention``.
        after: Name of the dropout or layer scale behind it.
    """

    norm: ClassVar[str]
    attention: ClassVar[str]
    after: ClassVar[str]

    def attend(self, block: Any, x: Tensor, mask: Any, **side: Any) -> Tensor:
        """``x + after(attention(norm(x)))``, in the block's own order of batch and sequence."""
        attention = getattr(block, self.attention)
        x = swap_unless_batch_first(attention, x)
        y = getattr(block, self.norm)(x)
        kept = block.__dict__.get(KEPT)
        if kept is not None:
            kept["normed"] = swap_unless_batch_first(attention, y)
        return swap_unless_batch_first(attention, x + getattr(block, self.after)(self_attention(attention, y, mask)))

    def for_norm(self, block: Any, rows: Tensor) -> Tensor:
        """In the block's own order of batch and sequence."""
        return swap_unless_batch_first(getattr(block, self.attention), rows)

    def kept(self, block: Any) -> dict[str, nn.Module]:
        """Empty: :meth:`attend` itself stores the input that :meth:`statistics` reads."""
        return {}

    def statistics(
        self, block: Any, kept: dict[str, Tensor], num_prefix: int, bias: Tensor | None, side: dict[str, Any]
    ) -> AttentionStats:
        """Queries, keys and values made again from the input of the attention."""
        attention = getattr(block, self.attention)
        heads, width, normed = attention.num_heads, attention.head_dim, kept["normed"]
        weights, offset = attention.in_proj_weight.chunk(3), attention.in_proj_bias
        biases = (None, None, None) if offset is None else offset.chunk(3)

        def project() -> tuple[Tensor, Tensor]:
            q, k = (split_heads(F.linear(normed, weights[i], biases[i]), heads=heads) for i in (0, 1))
            return q, k

        def keys() -> Tensor:  # the mean over heads of a product is the product with the mean of the weights
            weight = weights[1].unflatten(0, (heads, width)).mean(0)
            return F.linear(normed, weight, _mean(biases[1], heads))[:, None]

        def values() -> Tensor:
            return split_heads(F.linear(normed, weights[2], biases[2]), heads=heads)

        return AttentionStats(project, width**-0.5, num_prefix, bias, keys=keys, values=values)

    def stock(self, kind: type[nn.Module], block: Any, x: Tensor, **side: Any) -> Tensor:
        """The block's own forward on ``x [B, P+N, C]``, in its own order of batch and sequence."""
        attention = getattr(block, self.attention)
        return swap_unless_batch_first(attention, kind.forward(block, swap_unless_batch_first(attention, x), **side))

    def check(self, blocks: list[nn.Module]) -> list[nn.Module]:
        """Returns ``blocks`` after a check that each has plain self-attention.

        Raises:
            ValueError: If one has keys or values of another width (``kdim``, ``vdim``) or added keys.
        """
        for i, block in enumerate(blocks):
            attention: Any = getattr(block, self.attention, None)
            if not isinstance(attention, nn.MultiheadAttention):
                raise ValueError(
                    f"Expected an nn.MultiheadAttention as {self.attention} (got {type(attention).__name__} in block "
                    f"{i} of class {type(block).__name__})."
                )
            if attention.in_proj_weight is None or attention.bias_k is not None or attention.add_zero_attn:
                raise ValueError(
                    f"Expected self-attention over the tokens alone (got kdim, vdim, add_bias_kv or add_zero_attn in "
                    f"block {i})."
                )
        return blocks


def self_attention(attention: Any, x: Tensor, mask: Any) -> Tensor:
    """Self-attention of an ``nn.MultiheadAttention`` under any mask.

    The module itself runs without a mask, and under a tensor mask if it has hooks. Otherwise its projections go through
    ``scaled_dot_product_attention``. For a mask of one value per key the result equals the module's own with a float
    ``key_padding_mask``. It takes down to half the time on CPU, where the module multiplies by an expanded weight if
    no gradient is needed.

    Args:
        attention: The module.
        x: ``[B, N, C]``, or ``[N, B, C]`` where it is not ``batch_first``.
        mask: ``None``; additive, ``[1 or B, 1 or H, 1 or N, N]``; a :class:`~tokengraph.nn.KeepMask`, a ``SizeBias`` or
            an ``OpenMap``.

    Returns:
        As ``x``.

    Raises:
        ValueError: If the mask is no tensor and the module has hooks, is pruned or has a forward of its own.

    Cost: that of the module.
    """
    if mask is None:
        return attention(x, x, x, need_weights=False)[0]
    if isinstance(mask, Tensor) and not is_called_alone(attention):
        tokens = x.size(1 if attention.batch_first else 0)
        images = x.size(0 if attention.batch_first else 1)
        mask = mask.expand(images, attention.num_heads, tokens, -1).flatten(0, 1)
        return attention(x, x, x, attn_mask=mask, need_weights=False)[0]
    check_called_alone(attention, "the module takes only tensors as masks")
    x = swap_unless_batch_first(attention, F.linear(x, attention.in_proj_weight, attention.in_proj_bias))
    q, k, v = split_qkv(x, attention.num_heads)
    dropout = attention.dropout if attention.training else 0.0
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout).transpose(1, 2).flatten(2)
    return F.linear(swap_unless_batch_first(attention, y), attention.out_proj.weight, attention.out_proj.bias)


def swap_unless_batch_first(attention: Any, x: Tensor) -> Tensor:
    """``x`` with batch and sequence exchanged where the module wants the sequence first; its own inverse."""
    return x if attention.batch_first else x.transpose(0, 1)


def _mean(offset: Tensor | None, heads: int) -> Tensor | None:
    return None if offset is None else offset.unflatten(0, (heads, -1)).mean(0)
