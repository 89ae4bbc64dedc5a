"""Sums and maxima of rows by cluster: by ``index_add_``, or by sorted segments if the summation order must be fixed."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tokengraph.flat.bags import bag_sums
from tokengraph.flat.looks import may_differentiate, may_look, transforming
from tokengraph.flat.tables import counting

CROWD = 256  # with more rows of one index, a running float32 sum loses visible digits
RUN = 8  # rows that a long float32 sum adds before float64 adds these sums: 10,000 equal rows stay within 2e-7
BACKENDS = ("auto", "index_add", "segment")
TINY = torch.finfo(torch.float32).tiny  # smallest normal float32: bounds divisors and arguments of log away from 0


def segment_sum(x: Tensor, index: Tensor, rows: int, *, backend: str = "auto", most: int | None = None) -> Tensor:
    """Sums the rows of ``x`` that share an index, in float32 or wider.

    Args:
        x: ``[M, ...]``.
        index: ``[M]`` int64 in ``[0, rows)``.
        rows: Rows of the result.
        backend: ``"index_add"``; ``"segment"`` (sorts, then adds in index order by torch-scatter's ``segment_csr``, or
            by PyTorch's ``segment_reduce`` if torch-scatter is missing); ``"auto"`` takes ``"segment"`` on CUDA under
            ``torch.use_deterministic_algorithms(True)``, else ``"index_add"``.
        most: Rows of one index at most, if the caller knows it.

    Returns:
        ``[rows, ...]`` in float32, or float64 for float64 input. On eager CPU, sums of more than ``CROWD`` rows run in
        float64 internally; on CUDA and compiled they do not.

    Raises:
        ValueError: If ``backend`` is unknown.

    Cost: one pass over ``x``; ``"segment"`` adds a sort of ``[M]`` and a gathered copy of ``x``.
    """
    if backend not in BACKENDS:
        raise ValueError(f"Expected backend to be one of {', '.join(BACKENDS)} (got {backend!r}).")
    x = as_type(x, wide(x))
    if crowded(x, index, most):
        return _add(x.double(), index, rows, backend).to(x.dtype)
    return _add(x, index, rows, backend)


def _add(x: Tensor, index: Tensor, rows: int, backend: str) -> Tensor:
    """:func:`segment_sum` in the dtype of ``x``."""
    if backend == "auto":
        backend = "segment" if x.is_cuda and torch.are_deterministic_algorithms_enabled() else "index_add"
    if backend == "segment":
        return _sorted_sum(x, index, rows)
    zeros = x.new_zeros(rows, *x.shape[1:])
    if torch.compiler.is_compiling() or transforming():  # vmap may see many indices for the one set of zeros
        return zeros.index_add(0, index, x)
    return zeros.index_add_(0, index, x)


def crowded(x: Tensor, index: Tensor, most: int | None = None) -> bool:
    """True if a sum of ``x`` (float32, eager CPU) may add more than ``CROWD`` rows to one index.

    ``most`` is an upper bound of their number, if the caller knows one.

    One-dimensional ``x [M]`` always counts as crowded above ``CROWD`` rows: counting would cost more than the sum.
    """
    if not may_look(index) or x.dtype != torch.float32 or few(index, most):
        return False
    return x.dim() == 1 or int(torch.bincount(index).max()) > CROWD


def few(index: Tensor, most: int | None) -> bool:
    """True if no index can occur more than ``CROWD`` times."""
    return index.numel() <= CROWD or (most is not None and most <= CROWD)


def as_type(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns ``x`` in ``dtype``, without a call where nothing changes."""
    return x if x.dtype == dtype else x.to(dtype)


def wide(x: Tensor) -> torch.dtype:
    """Returns the dtype for sums of ``x``: float32, or float64 for float64."""
    return torch.promote_types(x.dtype, torch.float32)


def row_norm(x: Tensor) -> Tensor:
    """Returns the norm of each row of ``[M, ...]``: ``[M]``, in float32 or wider."""
    return torch.linalg.vector_norm(as_type(x[..., None].flatten(1), wide(x)), dim=1)


def with_norm(x: Tensor, norm: Tensor) -> Tensor:
    """Scales rows ``[M, ...]`` to the norms ``[M]``; zero rows stay zero. Returns the dtype of ``x``."""
    scale = norm / F.threshold(row_norm(x), TINY, 1.0)  # 1: rows of zeros may have any factor
    return as_type(x * scale.view(-1, *[1] * (x.dim() - 1)), x.dtype)


def weighted_sum(
    x: Tensor, weight: Tensor, index: Tensor, rows: int, *, source: Tensor | None = None, backend: str = "auto"
) -> Tensor:
    """Sums ``weight_e * x_e`` over rows that share an index; returns and raises as :func:`segment_sum`.

    ``index_add_`` needs a weighted copy of the rows, one for each edge. On eager CPU tensors, ``"auto"`` adds the same
    rows in the same order by ``embedding_bag`` instead, which multiplies while it adds: half the time or less, and no
    copy. If a gradient is needed, ``"auto"`` does so only with ``source``, where the copy is many times larger than
    ``x``.

    Args:
        x: ``[M, ...]``.
        weight: ``[M]``, or ``[E]`` with ``source``.
        index: ``[M]`` or ``[E]`` int64 in ``[0, rows)``.
        rows: Rows of the result.
        source: ``[E]`` int64: the row of ``x`` that each edge carries; ``None``: edge i carries row i.
        backend: As for :func:`segment_sum`.

    Cost: one pass over ``x``, or over ``[E, C]`` with ``source``; the copy ``[E, C]`` except on eager CPU.
    """
    x, weight = as_type(x, wide(x)), as_type(weight, wide(x))
    if takes_bags(x, weight, index, backend, copies=source is not None):
        return _bags(x, weight, index, rows, source)
    if source is not None:
        x = x.index_select(0, source)
    narrow = x.dtype
    if crowded(x, index):
        x, weight = x.double(), weight.double()
    return as_type(_add(x * weight.view(-1, *[1] * (x.dim() - 1)), index, rows, backend), narrow)


def takes_bags(x: Tensor, weight: Tensor, index: Tensor, backend: str, *, copies: bool = False) -> bool:
    """True if a weighted sum runs by ``embedding_bag``; ``copies``: other ways make a copy much larger than ``x``."""
    if backend != "auto" or not may_look(x) or transforming() or not (x.numel() and index.numel()):
        return False
    return copies or not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))


class Runs(NamedTuple):
    """Rows sorted by index.

    Args:
        index: The sorted indices, ``[E]``.
        order: The row that each comes from, ``[E]``.
        ends: The first place of each index, and the number of rows, ``[rows + 1]``.
        crowded: True if a float32 sum over one index would lose digits.
    """

    index: Tensor
    order: Tensor
    ends: Tensor
    crowded: bool

    @classmethod
    def of(cls, index: Tensor, rows: int, most: int | None = None) -> Runs:
        """Sorts ``index [E]``, which has values in ``[0, rows)``; ``most``: as for :func:`segment_sum`."""
        index, order = index.sort(stable=True)
        ends = torch.searchsorted(index, counting(rows + 1, index.device))
        return cls(index, order, ends, not few(index, most) and int(ends.diff().max()) > CROWD)

    def sum(self, values: Tensor) -> Tensor:
        """Sums sorted numbers ``[E]`` over each index: ``[rows]``."""
        wide = values.double() if self.crowded and values.dtype == torch.float32 else values
        if may_differentiate(values):  # segment_reduce has no second derivative, and none in forward mode
            zeros = wide.new_zeros(self.ends.numel() - 1)
            return as_type(zeros.index_add(0, self.index, wide), values.dtype)
        return as_type(torch.segment_reduce(wide, "sum", offsets=self.ends, axis=0, initial=0.0), values.dtype)

    def weighted(self, x: Tensor, weight: Tensor, source: Tensor | None = None) -> Tensor:
        """Sums rows ``x [M, ...]`` by sorted weights ``[E]`` over each index: ``[rows, ...]``; see ``takes_bags``.

        ``source [E]``: the row of each sorted edge; ``None``: rows are what was sorted.
        """
        source = self.order if source is None else source
        out = _sums_of_runs(x.reshape(x.size(0), -1), weight, source, self.index, self.ends, self.crowded)
        return as_type(out, x.dtype).view(-1, *x.shape[1:])


def _bags(x: Tensor, weight: Tensor, index: Tensor, rows: int, source: Tensor | None) -> Tensor:
    """The same sum by ``embedding_bag``, one bag for each row; sorts the edges unless they come sorted by index."""
    order = None if bool((index[1:] >= index[:-1]).all()) else index.argsort(stable=True)
    if order is not None:
        index, weight = index[order], weight[order]
        source = order if source is None else source[order]
    elif source is None:
        source = torch.arange(x.size(0), device=x.device)
    ends = torch.searchsorted(index, counting(rows + 1, index.device))
    most = index.numel() > CROWD and int(ends.diff().max()) > CROWD
    out = _sums_of_runs(x.reshape(x.size(0), -1), weight, source, index, ends, most)
    return as_type(out, x.dtype).view(rows, *x.shape[1:])


def _sums_of_runs(x: Tensor, weight: Tensor, source: Tensor, index: Tensor, ends: Tensor, crowded: bool) -> Tensor:
    """Sums edges sorted by index; where more than ``CROWD`` meet, ``RUN`` at a time, and these sums in float64."""
    starts = ends[:-1]
    if not crowded or x.dtype != torch.float32:
        return bag_sums(x, weight, source, index, starts)
    long = ends.diff() > CROWD
    number = torch.where(long, (ends.diff() + RUN - 1) // RUN, 1)  # of pieces, for each row
    first = number.cumsum(0) - number
    row = torch.repeat_interleave(counting(starts.numel(), x.device), number)
    begins = starts[row] + RUN * (counting(row.numel(), x.device) - first[row])
    piece = first[index] + torch.where(long[index], (counting(index.numel(), x.device) - starts[index]) // RUN, 0)
    parts = bag_sums(x, weight, source, piece, begins)
    pieces, rows = long[row].nonzero().view(-1), long.nonzero().view(-1)
    sums = parts.new_zeros(rows.numel(), x.size(1), dtype=torch.float64)
    sums = sums.index_add(0, (long.cumsum(0) - 1)[row[pieces]], parts.index_select(0, pieces).double())
    return parts.index_select(0, first).index_copy_(0, rows, sums.float())


def _sorted_sum(x: Tensor, index: Tensor, rows: int) -> Tensor:
    order = index.argsort(stable=True)
    bounds = torch.searchsorted(index[order], torch.arange(rows + 1, device=index.device))
    x = x.index_select(0, order)
    if not torch.compiler.is_compiling():
        from tokengraph.optional import load

        scatter = load("torch-scatter")
        if scatter is not None:
            return scatter.segment_csr(x, bounds, reduce="sum")
    return torch.segment_reduce(x, "sum", offsets=bounds, axis=0, initial=0.0)


def segment_max(x: Tensor, index: Tensor, rows: int) -> Tensor:
    """Takes the maximum over rows that share an index: ``[rows, ...]``, zeros where no row has that index."""
    expanded = index.view(-1, *[1] * (x.dim() - 1)).expand(x.shape)
    zeros = x.new_zeros(rows, *x.shape[1:])
    return zeros.scatter_reduce(0, expanded, x, "amax", include_self=False)
