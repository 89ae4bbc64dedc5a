"""How the rows of a cluster's tokens become the cluster's row."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tokengraph.flat.segment import row_norm, segment_max, segment_sum, weighted_sum, wide, with_norm

REDUCTIONS = ("mean", "sum", "max", "absmax", "mlerp", "center")
TINY = torch.finfo(torch.float32).tiny


class Bins(NamedTuple):
    """Which row goes where: ``cluster [M]`` in ``[0, K]``, K clusters, and whether value K, the bin, occurs."""

    cluster: Tensor
    count: int
    drops: bool

    @property
    def rows(self) -> int:
        """Rows of a sum before :meth:`trim`."""
        return self.count + 1 if self.drops else self.count

    def trim(self, rows: Tensor) -> Tensor:
        """Rows without the bin's."""
        return rows[: self.count] if self.drops else rows

    def padded(self, rows: Tensor, bin_row: float = 0.0) -> Tensor:
        """Rows with one for the bin."""
        return torch.cat([rows, rows.new_full((1, *rows.shape[1:]), bin_row)]) if self.drops else rows

    def sum(self, x: Tensor, backend: str) -> Tensor:
        """Sums of rows ``[M, ...]`` by cluster, ``[K, ...]``, in the dtype of ``x``."""
        return self.trim(segment_sum(x, self.cluster, self.rows, backend=backend)).to(x.dtype)

    def lift(self, y: Tensor) -> Tensor:
        """The row of each token's cluster, ``[K, ...]`` to ``[M, ...]``; zeros for tokens in the bin."""
        return self.padded(y).index_select(0, self.cluster)


def pool(x: Tensor, bins: Bins, weight: Tensor, total: Tensor, reduce: str, backend: str) -> Tensor:
    """Cluster rows ``[K, C]`` by every reduction but ``"center"``; see :meth:`tokengraph.Assignment.reduce`.

    Args:
        x: ``[M, C]``.
        bins: Where the rows go.
        weight: ``[M]``: how much each row counts in a mean.
        total: ``[K]``: its sums.
        reduce: One of ``REDUCTIONS``.
        backend: As for ``segment_sum``.
    """
    if reduce == "sum":
        return bins.sum(x, backend)
    if reduce == "max":
        return bins.trim(segment_max(x, bins.cluster, bins.rows))
    if reduce == "absmax":
        high, low = (bins.trim(segment_max(rows, bins.cluster, bins.rows)) for rows in (x, -x))
        return torch.where(high >= low, high, -low)
    # Normalising the weights first makes lone tokens exact copies (weight s/s = 1) and spares a pass over [K, C].
    share = weight / bins.padded(total, 1.0).clamp_min(TINY).index_select(0, bins.cluster)
    mean = bins.trim(weighted_sum(x, share, bins.cluster, bins.rows, backend=backend)).to(x.dtype)
    if reduce == "mlerp":
        mean = with_norm(mean, bins.trim(segment_max(row_norm(x), bins.cluster, bins.rows)))
    return mean


def counted(weight: Tensor, bins: Bins, backend: str) -> tuple[Tensor, Tensor]:
    """A map's own weights ``[M]`` and their sums ``[K]``; tokens of a cluster without weight count one each."""
    weight = weight.to(wide(weight))
    total = bins.sum(weight, backend)
    weight = torch.where(bins.padded(total, 1.0).index_select(0, bins.cluster) > 0, weight, 1.0)
    return weight, bins.sum(weight, backend)
