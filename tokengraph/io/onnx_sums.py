"""Sums of rows that share an index, in a form for which onnxruntime gives the same result in every run.

PyTorch translates ``index_add`` and ``index_put(accumulate=True)`` to ``ScatterND(reduction="add")``. On CPU
onnxruntime runs it in several threads, and loses updates if two threads add to one row. ``scatter_add`` becomes
``ScatterElements``, which runs in one thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor


def index_add(x: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: float = 1) -> Tensor:
    """Computes ``aten::index_add`` by ``scatter_add`` over a flat axis: in onnxruntime twice as fast as over rows."""
    if alpha != 1:
        source = source * alpha
    source = source.to(x.dtype)
    if x.dim() == 0:
        return x + source.sum()
    index = _from_front(index.reshape(-1), x.size(dim))
    if x.dim() == 1:
        return x.scatter_add(0, index, source)
    rows, added = x.movedim(dim, 0), source.movedim(dim, 0)
    width = prod(rows.shape[1:])
    place = (index[:, None] * width + torch.arange(width, device=x.device)).flatten()
    flat = rows.reshape(-1).scatter_add(0, place, added.reshape(-1))
    return flat.reshape(rows.shape).movedim(0, dim)


def index_put(x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False) -> Any:
    """Computes ``aten::index_put`` with ``accumulate`` by ``scatter_add``.

    Returns:
        The result, or ``NotImplemented``, which keeps the original call, if no two rows can share an index: without
        ``accumulate``, and for boolean masks.
    """
    given = [(dim, index) for dim, index in enumerate(indices) if index is not None]
    if not accumulate or any(index.dtype in (torch.bool, torch.uint8) for _, index in given):
        return NotImplemented
    dims = [dim for dim, _ in given]
    rest = [dim for dim in range(x.dim()) if dim not in dims]
    picked = torch.broadcast_tensors(*(index.long() for _, index in given))
    shape = [x.size(dim) for dim in dims]
    row = torch.zeros_like(picked[0])
    for index, size in zip(picked, shape, strict=True):
        row = row * size + _from_front(index, size)
    # As in indexing, the indexed axes of the values stay in place if they are adjacent, else they come first.
    together = dims == list(range(dims[0], dims[-1] + 1))
    before, after = (rest[: dims[0]], rest[dims[0] :]) if together else ([], rest)
    sizes = [*(x.size(d) for d in before), *row.shape, *(x.size(d) for d in after)]
    values = values.expand(sizes).movedim(list(range(len(before), len(before) + row.dim())), list(range(row.dim())))
    width = [x.size(dim) for dim in rest]
    flat = x.permute(*dims, *rest).reshape(prod(shape), *width)
    added = index_add(flat, 0, row.flatten(), values.reshape(-1, *width)).reshape(*shape, *width)
    order = [*dims, *rest]
    return added.permute([order.index(dim) for dim in range(x.dim())])


def _from_front(index: Tensor, size: int) -> Tensor:
    """Converts negative indices to nonnegative ones."""
    return torch.where(index < 0, index + size, index)
