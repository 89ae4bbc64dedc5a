"""The product of two sparse matrices, by sorting and counting."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.utils import coalesce

Edges = tuple[Tensor, Tensor, Tensor]  # token, cluster, weight in flat ids; or row, column, value of a sparse matrix


def product(a: Edges, b: Edges, middle: int) -> Edges:
    """The product of two sparse matrices ``(row, column, weight)``; ``middle`` is the width of ``a``.

    The result is sorted by row, then column, each pair once; under ``torch.compile`` neither holds, which changes no
    sum. It avoids torch's sparse products, which support few dtypes, do not compile, and warn that they are in beta.
    """
    (row, at, weight), (of, column, other) = a, b
    order = of.argsort(stable=True)
    count = torch.bincount(of, minlength=middle)
    first, times = (count.cumsum(0) - count)[at], count[at]
    left = torch.repeat_interleave(torch.arange(row.numel(), device=row.device), times)
    nth = torch.arange(left.numel(), device=row.device) - (times.cumsum(0) - times)[left]
    right = order[first[left] + nth]
    row, column, weight = row[left], column[right], weight[left] * other[right]
    if torch.compiler.is_compiling():
        return row, column, weight
    index, weight = coalesce(torch.stack([row, column]), weight, reduce="sum")
    return index[0], index[1], weight
