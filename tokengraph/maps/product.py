"""The product of two sparse matrices, by counting."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch_geometric.utils import coalesce, scatter

Edges = tuple[Tensor, Tensor, Tensor]  # token, cluster, weight in flat ids; or row, column, value of a sparse matrix

PIECE = 2**21  # summands at a time: about 100 MB


def product(a: Edges, b: Edges, middle: int) -> Edges:
    """The product of two sparse matrices ``(row, column, weight)``; ``middle`` is the width of ``a``.

    The result is sorted by row, then column, each pair once; under ``torch.compile`` neither holds, which changes no
    sum. It avoids torch's sparse products, which support few dtypes, do not compile, and warn that they are in beta.

    Cost: linear in the summands, where most columns between a row's first and last one are met, as for clusters of
    tokens nearby; otherwise the summands are sorted.
    """
    pairs = Pairs.of(a, b, middle)
    if torch.compiler.is_compiling():
        return pairs.summands(a, b)
    number = int(pairs.times.sum())
    band = Band.around(a, b, pairs, middle) if number else None
    if band is None or band.cells > 2 * number:
        row, column, weight = pairs.summands(a, b)
        index, weight = coalesce(torch.stack([row, column]), weight, reduce="sum")
        return index[0], index[1], weight
    return band.sums(a, b, pairs, number)


class Pairs(NamedTuple):
    """For each entry of the left matrix, the entries of the right one in the row that its column names."""

    order: Tensor  # entries of the right matrix, sorted by row
    first: Tensor  # place in ``order`` of the first entry that an entry of the left matrix meets
    times: Tensor  # how many it meets

    @classmethod
    def of(cls, a: Edges, b: Edges, middle: int) -> Pairs:
        """Finds them by counting the entries of each row."""
        at, of = a[1], b[0]
        count = torch.bincount(of, minlength=middle)
        return cls(of.argsort(stable=True), (count.cumsum(0) - count)[at], count[at])

    def summands(self, a: Edges, b: Edges) -> Edges:
        """Row, column and product of all pairs."""
        left = torch.repeat_interleave(torch.arange(self.times.numel(), device=self.times.device), self.times)
        start = self.first - self.times.cumsum(0) + self.times
        nth = start.index_select(0, left) + torch.arange(left.numel(), device=left.device)
        right = self.order.index_select(0, nth)
        weight = a[2].index_select(0, left) * b[2].index_select(0, right)
        return a[0].index_select(0, left), b[1].index_select(0, right), weight

    def pieces(self, number: int) -> list[slice]:
        """Entries of the left matrix in runs of about ``PIECE`` pairs."""
        ends = torch.arange(PIECE, number + PIECE, PIECE, device=self.times.device)
        places = torch.searchsorted(self.times.cumsum(0), ends).add(1).clamp_max(self.times.numel()).unique().tolist()
        return [slice(start, end) for start, end in zip([0, *places], places, strict=False)]


class Band(NamedTuple):
    """Cells of the product between the first and the last column of each row, row after row."""

    low: Tensor  # first column of each row
    width: Tensor  # cells of each row
    start: Tensor  # cells before each row
    cells: int  # cells of all rows

    @classmethod
    def around(cls, a: Edges, b: Edges, pairs: Pairs, middle: int) -> Band:
        """Finds each row's first and last column from those of the right matrix's rows that it meets."""
        met = pairs.times > 0
        row, at, rows = a[0][met], a[1][met], int(a[0].max()) + 1
        low = scatter(scatter(b[1], b[0], 0, middle, "min")[at], row, 0, rows, "min")
        high = scatter(scatter(b[1], b[0], 0, middle, "max")[at], row, 0, rows, "max")
        width = (high - low + 1) * (torch.bincount(row, minlength=rows) > 0)
        return cls(low, width, width.cumsum(0) - width, int(width.sum()))

    def sums(self, a: Edges, b: Edges, pairs: Pairs, number: int) -> Edges:
        """The product, its summands added up where they belong."""
        met = torch.zeros(self.cells, dtype=torch.bool, device=self.low.device)
        total = torch.zeros(self.cells, dtype=torch.promote_types(a[2].dtype, b[2].dtype), device=self.low.device)
        shift = self.start - self.low
        for piece in pairs.pieces(number):
            some = Pairs(pairs.order, pairs.first[piece], pairs.times[piece])
            row, column, weight = some.summands((a[0][piece], a[1][piece], a[2][piece]), b)
            cell = shift.index_select(0, row) + column
            met.index_fill_(0, cell, True)
            total = total.index_add(0, cell, weight)
        full = met.nonzero().view(-1)
        row = torch.repeat_interleave(torch.arange(self.width.numel(), device=full.device), self.width)[full]
        return row, full - shift[row], total[full]
