"""Attention whose edges are weighted by keep decisions; its gradient also reaches the dropped tokens."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tokengraph.attention.edge_gradient import CAP, attention_gradients
from tokengraph.attention.mask_object import SOFTMAXES, MaskObject
from tokengraph.flat.segment import as_type, wide
from tokengraph.kinds import explain_kinds, explains


@explains
def masked_softmax(
    scores: Tensor, keep: Tensor, *, official: bool = False, eps: float = 1e-6, cap: float = CAP
) -> Tensor:
    r"""Computes a softmax with edge weights :math:`G_{ij} = d_j + (1 - d_j) [i = j]`.

    Dropped keys get no attention, except from themselves.

    .. math:: A_{ij} = E_{ij} G_{ij} / \sum_k E_{ik} G_{ik}, \quad
              E_{ij} = \exp \min(P_{ij} - \max_{k: G_{ik} > 0} P_{ik}, \ln \text{cap})

    The bound acts only on dropped keys: it changes no value of A, and their gradient stays finite.

    Args:
        scores: P, scaled, ``[B, H, N, N]``.
        keep: d, ``[B, N]`` in [0, 1]; prefix tokens have 1.
        official: Use the published form: maximum over all keys, ``eps / N`` added to the numerator and ``eps`` to the
            denominator, no bound. There, a dropped key with a far higher score pulls the row towards uniform.
        eps: The eps of the published form.
        cap: Upper bound on the weight of a dropped key's edge in the gradient, relative to the best allowed key.

    Returns:
        ``[B, H, N, N]`` in the dtype of ``scores``; computed in float32 or wider.

    Raises:
        ValueError: If shapes do not fit.

    Cost: several ``[B, H, N, N]`` tensors. :func:`masked_attention` needs none.

    Source: Rao et al., *DynamicViT*, NeurIPS 2021, eqs. (10), (11), and its code. Differs unless ``official``: the
    maximum is over allowed keys, no eps, bounded exponent.
    """
    if scores.dim() != 4 or scores.size(-1) != scores.size(-2):
        raise ValueError(f"Expected scores of shape [B, H, N, N] (got {list(scores.shape)}).")
    if not cap >= 1:
        raise ValueError(f"Expected cap >= 1 (got {cap}).")
    _check_keep(keep, scores.size(0), scores.size(-1))
    tokens = scores.size(-1)
    if tokens == 0:
        return scores.clone()
    p = as_type(scores, wide(scores))
    keep = keep.to(p.dtype)[:, None, None, :]
    edge = keep + (1 - keep) * torch.eye(tokens, dtype=p.dtype, device=p.device)
    return edge_softmax(p, edge, official, eps, cap).to(scores.dtype)


def edge_softmax(p: Tensor, edge: Tensor, official: bool, eps: float, cap: float) -> Tensor:
    """The softmax of rows of scores ``p [B, H, r, N]`` by their edges' weights; see :func:`masked_softmax`."""
    if official:
        e = (p - p.amax(dim=-1, keepdim=True)).exp() * edge
        return (e + eps / p.size(-1)) / (e.sum(dim=-1, keepdim=True) + eps)
    top = p.detach().masked_fill(edge <= 0, -torch.inf).amax(dim=-1, keepdim=True)
    e = (p - top).clamp_max(math.log(cap)).exp() * edge
    return e / e.sum(dim=-1, keepdim=True)


@explains
def additive_mask(keep: Tensor) -> Tensor:
    """Returns ``log G``, an additive mask that gives the same softmax: ``[B, 1, N, N]`` in float32 or wider.

    Its values are exact, but it has no gradient, because that of the log is infinite at dropped keys. Use
    :class:`KeepMask` if gradients are needed.

    Args:
        keep: ``[B, N]`` in [0, 1].

    Cost: one ``[B, 1, N, N]`` tensor; no host synchronisation.
    """
    log = keep.detach().to(wide(keep) if keep.is_floating_point() else torch.float32).log()
    mask = log[:, None, None, :].repeat(1, 1, keep.size(1), 1)
    mask.diagonal(dim1=-2, dim2=-1).zero_()
    return mask


@explains
def masked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep: Tensor,
    *,
    scale: float | None = None,
    official: bool = False,
    dropout_p: float = 0.0,
) -> Tensor:
    """Computes attention with :func:`masked_softmax` by the fused kernel, with the same gradients.

    Forward is ``scaled_dot_product_attention`` with :func:`additive_mask`. If ``keep`` needs a gradient, backward
    recomputes the map, a few heads at a time. A dropped key gets the gradient that its edge would carry if kept.

    Args:
        q: Queries, ``[B, H, N, D]``.
        k: Keys, ``[B, H, N, D]``.
        v: Values, ``[B, H, N, D]``.
        keep: ``[B, N]`` in [0, 1], over all N tokens; prefix tokens have 1.
        scale: Factor on the scores; ``None``: ``D ** -0.5``.
        official: See :func:`masked_softmax`; True computes the whole map.
        dropout_p: Dropout probability of the attention weights; above 0, the whole map is computed.

    Returns:
        ``[B, H, N, D]``.

    Raises:
        ValueError: If shapes do not fit.

    Cost: forward that of the fused kernel; backward 5 products of ``B H N^2 D``, as many as the fused kernel's own,
    and no ``[B, H, N, N]`` tensor is kept. Second derivatives exist only if the whole map is computed.
    """
    _check_heads(q, k, v, keep)
    return _attend(q, k, v, keep, None, q.size(-1) ** -0.5 if scale is None else scale, official, dropout_p)


@explain_kinds
class KeepMask(MaskObject):
    """A keep decision in place of a block's attention mask: pass it as ``attn_mask``.

    It is no tensor, but torch functions accept it. ``scaled_dot_product_attention`` becomes :func:`masked_attention`,
    and ``(scores + mask).softmax(-1)`` becomes :func:`masked_softmax`, so both fused and plain attention give correct
    results and gradients. All other functions raise, because they would lose the gradient.

    Args:
        keep: ``[B, N]`` in [0, 1], over all N tokens; prefix tokens have 1.
        official: See :func:`masked_softmax`.
        cap: See :func:`masked_softmax`. If attention is sharp, the gradients of decisions grow up to this bound; a
            smaller one limits them, and changes no output.
        bias: Added to the scores of each key, ``[B, N]``, such as the logarithm of its size.

    Raises:
        ValueError: If ``keep`` has another shape or ``cap < 1``.

    Example:
        >>> mask = KeepMask(torch.tensor([[1.0, 0.0]]))
        >>> (torch.zeros(1, 1, 2, 2) + mask).softmax(dim=-1).tolist()
        [[[[1.0, 0.0], [0.5, 0.5]]]]
    """

    def __init__(self, keep: Tensor, *, official: bool = False, cap: float = CAP, bias: Tensor | None = None) -> None:
        if keep.dim() != 2:
            raise ValueError(f"Expected keep of shape [B, N] (got {list(keep.shape)}).")
        if not cap >= 1:
            raise ValueError(f"Expected cap >= 1 (got {cap}).")
        self.cap = cap
        self.keep = keep
        self.official = official
        self.bias = bias
        self.dtype = wide(keep) if keep.is_floating_point() else torch.float32
        self.device = keep.device
        self.shape = torch.Size((keep.size(0), 1, keep.size(1), keep.size(1)))
        self._additive: Tensor | None = None

    def additive(self) -> Tensor:
        """Returns :func:`additive_mask`, computed once for all blocks that share this object."""
        if self._additive is None:
            self._additive = additive_mask(self.keep)
        return self._additive

    def plus(self, scores: Tensor) -> _KeptScores:
        """Returns the scores as an object whose ``softmax`` is :func:`masked_softmax`."""
        return _KeptScores(scores if self.bias is None else scores + self.bias[:, None, None].to(scores.dtype), self)

    def rows(self, scores: Tensor, start: int) -> Tensor:
        """Returns rows from ``start`` on of the softmax, for their scores ``[B, H, r, N]`` without this mask's bias."""
        count, stop = scores.size(3), start + scores.size(2)
        scores = scores if self.bias is None else scores + self.bias[:, None, None]
        keep = self.keep.to(scores.dtype)[:, None, None]
        own = torch.eye(count, dtype=scores.dtype, device=scores.device)[start:stop]
        return edge_softmax(scores, keep + (1 - keep) * own, self.official, 1e-6, self.cap).to(scores.dtype)

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, *, scale: float | None, dropout_p: float, enable_gqa: bool
    ) -> Tensor:
        """Computes :func:`masked_attention`."""
        self.check(q, k, v, enable_gqa)
        factor = q.size(-1) ** -0.5 if scale is None else scale
        if self.bias is not None:  # one more channel, so that forward and both derivatives stay as they are
            q = torch.cat([q, torch.full_like(q[..., :1], 1 / factor)], dim=-1)
            k = torch.cat([k, self.bias[:, None, :, None].to(k.dtype).expand(-1, k.size(1), -1, -1)], dim=-1)
        return _attend(q, k, v, self.keep, self, factor, self.official, dropout_p)

    def check(self, q: Tensor, k: Tensor, v: Tensor, enable_gqa: bool) -> None:
        """Raises ValueError if heads share keys (grouped-query attention) or shapes do not fit."""
        if enable_gqa:
            raise ValueError("Expected enable_gqa=False with a keep mask (got True).")
        _check_heads(q, k, v, self.keep)


class _KeptScores:
    """Scores with their keep mask, before the softmax."""

    def __init__(self, scores: Tensor, mask: KeepMask) -> None:
        self.scores, self.mask = scores, mask
        self.dtype, self.device, self.shape = scores.dtype, scores.device, scores.shape

    def softmax(self, dim: int = -1, dtype: torch.dtype | None = None) -> Tensor:
        """Computes :func:`masked_softmax` over keys."""
        if dim not in (-1, self.scores.dim() - 1):
            raise ValueError(f"Expected a softmax over keys, dim=-1 (got dim={dim}).")
        scores = self.scores if dtype is None else self.scores.to(dtype)
        return masked_softmax(scores, self.mask.keep, official=self.mask.official, cap=self.mask.cap)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in SOFTMAXES:
            rest = {k: v for k, v in (kwargs or {}).items() if k in ("dim", "dtype")}
            return args[0].softmax(*args[1:2], **rest)
        raise TypeError(f"Expected a softmax of masked scores (got {func.__name__}).")


def _attend(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor, mask: KeepMask | None, scale: float, official: bool, dropout_p: float
) -> Tensor:
    cap = CAP if mask is None else mask.cap
    if official or dropout_p > 0 or q.size(2) == 0:
        scores = torch.matmul(q * scale, k.transpose(-2, -1))
        weight = F.dropout(masked_softmax(scores, keep, official=official, cap=cap), dropout_p)
        return torch.matmul(weight.to(v.dtype), v)
    bias = (additive_mask(keep) if mask is None else mask.additive()).to(q.dtype)
    if torch.is_grad_enabled() and keep.requires_grad:
        return _FusedMaskedAttention.apply(q, k, v, keep, bias, scale, cap)  # type: ignore[return-value]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)


class _FusedMaskedAttention(torch.autograd.Function):
    """Runs the fused kernel forward; backward gives the gradients of q, k, v and keep."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, keep: Tensor, bias: Tensor, scale: float, cap: float
    ) -> Tensor:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
        ctx.save_for_backward(q, k, v, keep, out)
        ctx.scale, ctx.cap = scale, cap
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, keep, out = ctx.saved_tensors
        with torch.autocast(grad.device.type, enabled=False):
            return (*attention_gradients(grad, q, k, v, keep, out, ctx.scale, ctx.cap), None, None, None)


def _check_keep(keep: Tensor, images: int, tokens: int) -> None:
    if keep.shape != (images, tokens):
        raise ValueError(
            f"Expected keep of shape [B, N] = [{images}, {tokens}] (got {list(keep.shape)}). "
            "It covers prefix tokens too: they have 1."
        )


def _check_heads(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> None:
    if q.dim() != 4 or q.shape != k.shape or q.shape[:-1] != v.shape[:-1]:
        raise ValueError(
            f"Expected q, k and v of shape [B, H, N, D] (got {list(q.shape)}, {list(k.shape)}, {list(v.shape)})."
        )
    _check_keep(keep, q.size(0), q.size(2))
