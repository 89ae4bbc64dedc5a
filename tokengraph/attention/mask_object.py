"""An object in place of an attention mask: it takes over when a stock block uses its mask."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ADDS = (torch.Tensor.add, torch.add, torch.Tensor.__add__, torch.Tensor.__radd__)
SOFTMAXES = (torch.softmax, F.softmax, torch.Tensor.softmax)


class MaskObject(ABC):
    """Base class of mask objects: no tensors, but torch functions accept them (``__torch_function__``).

    If the block calls ``scaled_dot_product_attention``, :meth:`attention` runs. If it adds the mask to its scores,
    :meth:`plus` runs. All other torch functions go to :meth:`other`.
    """

    dtype: torch.dtype

    @abstractmethod
    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, *, scale: float | None, dropout_p: float, enable_gqa: bool
    ) -> Tensor:
        """Computes attention ``[B, H, N, E]`` of queries, keys and values ``[B, H, N, D]`` under this mask."""

    @abstractmethod
    def plus(self, scores: Tensor) -> Any:
        """Computes ``scores + mask``: a tensor, or an object with the ``softmax`` that the block calls next."""

    def other(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Handles every other torch function that gets the mask: torch's softmax functions by ``self.softmax``.

        Raises:
            TypeError: For other functions, and for masks without ``softmax``.
        """
        softmax = getattr(self, "softmax", None)
        if softmax is not None and func in SOFTMAXES:
            return softmax(*args[1:2], **{k: v for k, v in kwargs.items() if k in ("dim", "dtype")})
        raise TypeError(
            f"Expected {type(self).__name__} to meet scaled_dot_product_attention, or scores + mask "
            f"(got {func.__name__})."
        )

    def __add__(self, scores: Tensor) -> Any:
        return self.plus(scores)

    __radd__ = __add__

    def __getitem__(self, index: Any) -> MaskObject:
        """Returns itself: older attention code slices its mask to the number of keys, and the mask already fits."""
        return self

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        mine = next(a for a in (*args, *kwargs.values()) if isinstance(a, MaskObject))
        if func in ADDS and not kwargs:
            scores = args[1] if mine is args[0] else args[0]
            return mine.plus(scores)  # torch.compile would route + back to this method
        return mine.other(func, args, kwargs)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: MaskObject,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Has the signature of ``scaled_dot_product_attention`` and lets the mask object compute."""
    if is_causal:
        raise ValueError("Expected is_causal=False (got True): clusters have no order in time.")
    return attn_mask.attention(query, key, value, scale=scale, dropout_p=dropout_p, enable_gqa=enable_gqa)
