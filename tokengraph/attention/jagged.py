"""Attention of images of different lengths that lie behind one another in one sequence, as one nested tensor."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokengraph.attention.size_bias import SizeBias, fold


def has_jagged() -> bool:
    """Returns whether torch has nested tensors whose longest image is known without a look: from 2.5 on."""
    make = getattr(torch.nested, "nested_tensor_from_jagged", None)
    return make is not None and "max_seqlen" in inspect.signature(make).parameters


class Jagged(SizeBias):
    """The limits of images in a packed sequence ``[1, T, C]``, in place of a block's attention mask.

    Tokens attend to those of their own image alone. If the block calls ``scaled_dot_product_attention``, it runs on a
    nested tensor: on CUDA in one fused kernel without padding, on CPU image by image. A bias on keys is folded into the
    heads, because that kernel takes no mask. A block that adds its mask to its scores gets one of T x T entries:
    correct, but with B times the memory and time of padding.

    Args:
        counts: Tokens of each image, in order, each at least 1; T in all.
        bias: The bias of each key, ``[1, 1, 1, T]`` float32; ``None``: none.
        dtype: The dtype of the mask that it replaces.
        offsets: Where each image begins, and T, ``[B + 1]``, on the device of the tokens.
    """

    def __init__(self, counts: Sequence[int], bias: Tensor | None, dtype: torch.dtype, offsets: Tensor) -> None:
        self.counts, self.biased = tuple(counts), bias is not None
        _warm_up()
        super().__init__(torch.zeros(1, 1, 1, sum(counts), device=offsets.device) if bias is None else bias, dtype)
        self.offsets = offsets

    def float(self) -> Any:
        """Returns itself, as it has no numbers to convert."""
        return self

    def dense(self) -> Tensor:
        """Returns the additive mask ``[1, 1, T, T]``, ``-inf`` between tokens of different images."""
        lengths = self.offsets.diff()
        numbers = torch.arange(len(lengths), device=lengths.device)
        image = numbers.repeat_interleave(lengths, output_size=sum(self.counts))
        return torch.where(image[:, None] == image, self.bias, -torch.inf)

    def plus(self, scores: Tensor) -> Tensor:
        """Adds :meth:`dense` to ``scores [1, H, T, T]``."""
        return scores + self.dense().to(scores.dtype)

    def other(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Calls any other function with :meth:`dense`."""
        args = tuple(a.dense().to(a.dtype) if isinstance(a, Jagged) else a for a in args)
        return func(*args, **{k: a.dense().to(a.dtype) if isinstance(a, Jagged) else a for k, a in kwargs.items()})

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, *, scale: float | None, dropout_p: float, enable_gqa: bool
    ) -> Tensor:
        """Computes attention within images: ``[1, H, T, E]`` of heads ``[1, H, T, D]``."""
        if enable_gqa:
            groups = q.size(1) // k.size(1)
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        width = v.size(-1)
        if self.biased or q.size(-1) != width:  # nested kernels take heads of one width, which folding makes
            q, k, v, scale = fold(q, k, v, self.bias, scale)
        nested = F.scaled_dot_product_attention(
            self._nested(q), self._nested(k), self._nested(v), dropout_p=dropout_p, scale=scale
        )
        return nested.transpose(1, 2).values().transpose(0, 1)[None, ..., :width]

    def _nested(self, heads: Tensor) -> Any:
        """``[1, H, T, D]`` as a nested tensor ``[B, H, n, D]`` of n different for each image."""
        rows = heads[0].transpose(0, 1).contiguous()
        how: Any = {"min_seqlen": min(self.counts), "max_seqlen": max(self.counts)}  # else kernels ask the device
        return torch.nested.nested_tensor_from_jagged(rows, self.offsets, **how).transpose(1, 2)


@cache
def _warm_up() -> None:
    """Makes a nested tensor, so that torch warns here, unheard, that it may still change them: it warns once."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The PyTorch API of nested tensors is in prototype stage")
        torch.nested.as_nested_tensor([torch.zeros(1, 1)])
