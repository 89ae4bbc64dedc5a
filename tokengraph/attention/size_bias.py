"""The size bias of proportional attention: as a mask, or folded into the heads for kernels that take no mask."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokengraph.attention.mask_object import MaskObject

POWERS = {"log": 1.0, "half-log": 0.5, "none": 0.0, "inverse": -1.0}
WAYS = ("auto", "mask", "fold")
# Device types on which "auto" folds, because folding was measured to be faster there (benchmarks/size_bias.py). On CPU
# folded attention takes 1.2 to 2.0 times as long as attention with a mask. CUDA has not been measured.
FOLDS: tuple[str, ...] = ()
MULTIPLE = 8  # fused kernels need a head width that is a multiple of this


@dataclass(frozen=True)
class SizeRule:
    r"""How attention weights keys by their sizes: it adds :math:`p \log s` to their logits.

    Args:
        power: p; 0 adds nothing.
        way: ``"mask"``, ``"fold"`` or ``"auto"`` (fold on the device types in ``FOLDS``).
    """

    power: float
    way: str = "mask"

    @classmethod
    def of(cls, prop_attn: bool | str, way: str = "mask") -> SizeRule:
        """Makes a rule from the arguments of ``attach``.

        Args:
            prop_attn: ``"log"`` (True), ``"half-log"``, ``"none"`` (False) or ``"inverse"``.
            way: ``"auto"``, ``"mask"`` or ``"fold"``.

        Raises:
            ValueError: If an argument is none of these.
        """
        if way not in WAYS:
            raise ValueError(f"Expected size_bias to be auto, mask or fold (got {way!r}).")
        if isinstance(prop_attn, bool):
            return cls(float(prop_attn), way)
        if not isinstance(prop_attn, str) or prop_attn not in POWERS:
            raise ValueError(f"Expected prop_attn to be {', '.join(POWERS)}, True or False (got {prop_attn!r}).")
        return cls(POWERS[prop_attn], way)

    def bias(self, size: Tensor) -> Tensor:
        """Returns the bias for the logits of keys of ``size``, same shape, float32; always ``-inf`` at size 0."""
        log = size.log() if self.power == 1 else self.power * size.log()
        return log if self.power > 0 else torch.where(size > 0, log, -torch.inf)

    def folds(self, device: torch.device) -> bool:
        """True if the bias is folded into the heads on this device."""
        return self.way == "fold" or (self.way == "auto" and device.type in FOLDS)


def folded_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    *,
    scale: float | None = None,
    dropout_p: float = 0.0,
    enable_gqa: bool = False,
) -> Tensor:
    r"""Computes attention with a bias on its keys by ``scaled_dot_product_attention`` without a mask.

    .. math:: q' = [q, c, c], \quad k' = [k, h, l], \quad h + l = b / (c \cdot \mathrm{scale})

    c is the power of two nearest to ``1 / scale``. h and l are the high and low part of this quotient, so in bfloat16
    it has up to 16 significant bits, where a bfloat16 mask has 8. Queries, keys and values are padded with zeros to one
    head width, a multiple of 8, as fused kernels need it. The bias gets its gradient.

    Args:
        q: Queries, ``[B, H, N, D]``.
        k: Keys, ``[B, H, M, D]``.
        v: Values, ``[B, H, M, E]``.
        bias: ``[B, 1, 1, M]``; ``-inf`` excludes a key.
        scale: Factor on the products; ``None``: ``D ** -0.5``.
        dropout_p: Dropout probability of the attention weights.
        enable_gqa: Keys and values have fewer heads (grouped-query attention).

    Returns:
        ``[B, H, N, E]``.

    Raises:
        ValueError: If the bias has another shape.

    Cost: copies of q, k and v; the kernel runs with a head width of ``D + 2`` (or E, if it is
    larger) rounded up to a multiple of 8.
    """
    if bias.dim() != 4 or bias.shape[1:3] != (1, 1) or bias.size(3) != k.size(2):
        raise ValueError(f"Expected a bias of shape [B, 1, 1, {k.size(2)}] (got {list(bias.shape)}).")
    width = v.size(-1)
    q, k, v, scale = fold(q, k, v, bias, scale)
    grouped: dict[str, Any] = {"enable_gqa": True} if enable_gqa else {}  # torch 2.4 has no such argument
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, scale=scale, **grouped)[..., :width]


def fold(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float | None) -> tuple[Tensor, Tensor, Tensor, float]:
    """Returns queries, keys and values with the bias in two more entries of each head, and the scale to use.

    Takes the arguments of :func:`folded_attention`, which has the formula. The head widths become equal.
    """
    width = q.size(-1)
    scale = float(width**-0.5 if scale is None else scale)
    padded = -(-max(width + 2, v.size(-1)) // MULTIPLE) * MULTIPLE
    factor = 2.0 ** round(-math.log2(scale))
    wanted = (bias.float() / (factor * scale)).view(bias.size(0), 1, -1, 1).expand(-1, k.size(1), -1, -1)
    high = wanted.to(k.dtype)
    low = torch.where(wanted > -torch.inf, wanted - high.float(), 0.0).to(k.dtype)  # -inf minus itself is no number
    rest = padded - width - 2
    q = torch.cat([q, q.new_full((*q.shape[:-1], 2), factor), q.new_zeros(*q.shape[:-1], rest)], dim=-1)
    k = torch.cat([k, high.expand(k.size(0), -1, -1, -1), low.expand(k.size(0), -1, -1, -1),
                   k.new_zeros(*k.shape[:-1], rest)], dim=-1)  # fmt: skip
    return q, k, F.pad(v, (0, padded - v.size(-1))), scale


class SizeBias(MaskObject):
    """A bias on keys in place of a block's attention mask: pass it as ``attn_mask``.

    It is no tensor, but torch functions accept it. ``scaled_dot_product_attention`` becomes :func:`folded_attention`;
    every other function gets the bias as a tensor, so that ``scores + mask`` works too.

    Args:
        bias: ``[B, 1, 1, N]`` float32.
        dtype: The dtype of the mask that it replaces.

    Example:
        >>> mask = SizeBias(torch.tensor([1.0, 3.0]).log().view(1, 1, 1, 2), torch.float32)
        >>> (torch.zeros(1, 1, 1, 2) + mask).softmax(dim=-1)
        tensor([[[[0.2500, 0.7500]]]])
    """

    def __init__(self, bias: Tensor, dtype: torch.dtype) -> None:
        self.bias = bias
        self.dtype = dtype
        self.device = bias.device
        self.shape = bias.shape

    def size(self, dim: int) -> int:
        """Returns the size of the mask along ``dim``, as a tensor does."""
        return self.bias.size(dim)

    def float(self) -> Tensor:
        """Returns the mask in float32."""
        return self.bias

    def dim(self) -> int:
        """Returns the number of axes, 4."""
        return self.bias.dim()

    def plus(self, scores: Tensor) -> Tensor:
        """Adds the bias of each key to ``scores [B, H, N, M]``."""
        return scores + self.bias.to(scores.dtype)

    def other(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Calls any other function with the bias as a tensor."""
        args = tuple(a.bias.to(a.dtype) if isinstance(a, SizeBias) else a for a in args)
        return func(*args, **{k: a.bias.to(a.dtype) if isinstance(a, SizeBias) else a for k, a in kwargs.items()})

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, *, scale: float | None, dropout_p: float, enable_gqa: bool
    ) -> Tensor:
        """Computes :func:`folded_attention`."""
        return folded_attention(q, k, v, self.bias, scale=scale, dropout_p=dropout_p, enable_gqa=enable_gqa)
