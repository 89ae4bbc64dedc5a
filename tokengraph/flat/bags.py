"""Weighted sums over edges by ``embedding_bag``; adds its missing second derivative and forward-mode derivative."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokengraph.flat.looks import may_differentiate

SUM = 0  # the number by which embedding_bag's kernels know mode="sum"


def bag_sums(x: Tensor, weight: Tensor, source: Tensor, index: Tensor, starts: Tensor) -> Tensor:
    """Sums ``weight_e * x[source_e]`` over the edges of each row, ``[rows, C]``.

    Args:
        x: ``[M, C]``, float32 or wider, on CPU.
        weight: ``[E]``, of the same dtype.
        source: ``[E]`` int64 in ``[0, M)``.
        index: ``[E]`` int64 in ``[0, rows)``, sorted: the row that each edge goes to.
        starts: ``[rows]`` int64: the first edge of each row.

    Cost: that of ``embedding_bag``, forward and first gradient; ``create_graph=True`` adds two copies ``[E, C]``.
    """
    if not may_differentiate(x) and not may_differentiate(weight):
        return F.embedding_bag(source, x, starts, mode="sum", per_sample_weights=weight)
    out: Any = _Bags.apply(x, weight, source, index, starts)
    return out


class _Bags(torch.autograd.Function):
    """``embedding_bag`` of ``x [M, C]`` that can be differentiated twice (``create_graph=True``)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, source: Tensor, index: Tensor, starts: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, weight, source, index, starts)
        ctx.save_for_forward(x, weight, source, index, starts)
        return F.embedding_bag(source, x, starts, mode="sum", per_sample_weights=weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        """Returns the gradients of ``x`` and ``weight``; with ``create_graph=True`` in a form with derivatives."""
        x, weight, source, index, starts = ctx.saved_tensors
        of_x = of_weight = None
        if torch.is_grad_enabled():  # create_graph=True
            if ctx.needs_input_grad[0]:
                of_x = torch.zeros_like(x).index_add(0, source, grad.index_select(0, index) * weight[:, None])
            if ctx.needs_input_grad[1]:
                of_weight = (grad.index_select(0, index) * x.index_select(0, source)).sum(dim=1)
            return of_x, of_weight, None, None, None
        # The kernels that autograd calls for embedding_bag: several times faster.
        aten, grad, none = torch.ops.aten, grad.contiguous(), index.new_empty(0)
        if ctx.needs_input_grad[0]:
            of_x = aten._embedding_bag_dense_backward(grad, source, index, none, none, x.size(0), False, SUM, weight)
        if ctx.needs_input_grad[1]:
            of_weight = aten._embedding_bag_per_sample_weights_backward(grad, x, source, starts, index, SUM)
        return of_x, of_weight, None, None, None

    @staticmethod
    def jvp(ctx: Any, x_tangent: Any, weight_tangent: Any, *_: Any) -> Any:  # type: ignore[override]
        """Returns the tangent of the sums ``[rows, C]``."""
        x, weight, source, _, starts = ctx.saved_tensors
        out = 0.0
        if x_tangent is not None:
            out = F.embedding_bag(source, x_tangent, starts, mode="sum", per_sample_weights=weight)
        if weight_tangent is not None:
            out = out + F.embedding_bag(source, x, starts, mode="sum", per_sample_weights=weight_tangent)
        return out
