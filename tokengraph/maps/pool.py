"""Pools the rows of a cluster's tokens into the cluster's row."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tokengraph.flat.looks import may_look
from tokengraph.flat.segment import (
    TINY,
    Runs,
    as_type,
    row_norm,
    segment_max,
    segment_sum,
    weighted_sum,
    wide,
    with_norm,
)

MEANS = ("mean", "mlerp", "released-mlerp")
REDUCTIONS = ("mean", "sum", "max", "absmax", "mlerp", "center", "released-mlerp")


def check_reduction(reduce: str) -> None:
    """Raises ValueError unless it is the name of a reduction."""
    if reduce not in REDUCTIONS:
        raise ValueError(f"Expected reduce to be one of {', '.join(REDUCTIONS)} (got {reduce!r}).")


def check_pooling(x: Tensor, reduce: str, centers: Tensor | None) -> None:
    """Raises unless a map with these centers can pool rows ``x`` by this reduction.

    Raises:
        ValueError: On an unknown name, or a reduction by centers without centers.
        TypeError: On rows without fractions for a mean or mlerp.
    """
    check_reduction(reduce)
    if reduce in MEANS and not (x.is_floating_point() or x.is_complex()):
        raise TypeError(f"Expected floating-point x to take a {reduce} of (got {x.dtype}). Convert with .float().")
    if reduce in ("center", "released-mlerp") and centers is None:
        raise ValueError(f"Expected a map with centers to reduce by {reduce!r} (got none). Set them, or use 'mean'.")


def with_bin(table: Tensor, number: int) -> Tensor:
    """Appends the bin's number to a table ``[K]``; by ``pad`` in eager mode, which takes one operation."""
    if torch.compiler.is_compiling():  # pad would fix the batch size of an export
        return torch.cat([table, table.new_full((1,), number)])
    return F.pad(table, (0, 1), value=number)


class Bins(NamedTuple):
    """The target of each row: ``cluster [M]`` in ``[0, K]``, K clusters, and whether value K, the bin, occurs."""

    cluster: Tensor
    count: int
    drops: bool
    most: int | None = None  # tokens of one cluster at most, where that is known

    @property
    def rows(self) -> int:
        """Rows of a sum before :meth:`trim`."""
        return self.count + 1 if self.drops else self.count

    def trim(self, rows: Tensor) -> Tensor:
        """Removes the bin's row."""
        return rows[: self.count] if self.drops else rows

    def padded(self, rows: Tensor, bin_row: float = 0.0) -> Tensor:
        """Appends a row for the bin."""
        return F.pad(rows, (0, 0) * (rows.dim() - 1) + (0, 1), value=bin_row) if self.drops else rows

    def sum(self, x: Tensor, backend: str) -> Tensor:
        """Sums rows ``[M, ...]`` by cluster: ``[K, ...]``, in the dtype of ``x``."""
        return as_type(self.trim(segment_sum(x, self.cluster, self.rows, backend=backend, most=self.most)), x.dtype)

    def lift(self, y: Tensor) -> Tensor:
        """Copies cluster rows ``[K, ...]`` to their tokens, ``[M, ...]``; zeros for tokens in the bin."""
        return self.padded(y).index_select(0, self.cluster)


def pool_sorted(
    x: Tensor, bins: Bins, weight: Tensor, mass: Tensor, reduce: str, centers: Tensor | None = None, *, given: bool
) -> tuple[Tensor, Tensor]:
    """:func:`pool` weighted by ``weight``, and the sums of ``mass [K]``: rows are sorted once for both.

    For means and mlerp on tensors for which ``takes_bags`` holds. ``given``: weights are not sizes, and those of a
    cluster may sum to zero; see :func:`counted`.
    """
    rows = as_type(x, wide(x))
    runs = Runs.of(bins.cluster, bins.rows, bins.most)
    own = weight.index_select(0, runs.order)
    total = runs.sum(own)
    new_size = total if mass is weight else runs.sum(mass.index_select(0, runs.order))
    if given and not _all_count(bins.trim(total)):
        own = torch.where(total.index_select(0, runs.index) > 0, own, 1.0)
        total = runs.sum(own)
    share = own / total.clamp_min(TINY).index_select(0, runs.index)
    mean = as_type(bins.trim(runs.weighted(rows, as_type(share, rows.dtype))), x.dtype)
    return _long(x, bins, mean, reduce, centers), bins.trim(new_size)


def pool(
    x: Tensor, bins: Bins, weight: Tensor, total: Tensor, reduce: str, backend: str, centers: Tensor | None = None
) -> Tensor:
    """Returns cluster rows ``[K, C]`` by every reduction but ``"center"``; see :meth:`tokengraph.Assignment.reduce`.

    Args:
        x: ``[M, C]``.
        bins: The cluster of each row.
        weight: Weight of each row in a mean, ``[M]``.
        total: Sums of the weights by cluster, ``[K]``.
        reduce: One of ``REDUCTIONS``.
        backend: As for ``segment_sum``.
        centers: ``[K]``: the row of each cluster's center; for ``"released-mlerp"``.
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
    mean = as_type(bins.trim(weighted_sum(x, share, bins.cluster, bins.rows, backend=backend)), x.dtype)
    return _long(x, bins, mean, reduce, centers)


def _long(x: Tensor, bins: Bins, mean: Tensor, reduce: str, centers: Tensor | None) -> Tensor:
    """Gives means ``[K, C]`` the norms that ``reduce`` asks for."""
    if reduce not in ("mlerp", "released-mlerp"):
        return mean
    longest = bins.trim(segment_max(row_norm(x), bins.cluster, bins.rows))
    if reduce == "mlerp":
        return with_norm(mean, longest)
    assert centers is not None
    own = row_norm(x.index_select(0, centers))
    scale = torch.where(own > 0, longest / own.clamp_min(TINY), 1.0)  # published: NaN for a center of zeros
    return as_type(mean * scale.view(-1, *[1] * (x.dim() - 1)), x.dtype)


def counted(weight: Tensor, bins: Bins, backend: str) -> tuple[Tensor, Tensor]:
    """Returns a map's own weights ``[M]`` and their sums ``[K]``; tokens of a cluster with total weight 0 count 1."""
    weight = as_type(weight, wide(weight))
    total = bins.sum(weight, backend)
    if _all_count(total):
        return weight, total
    weight = torch.where(bins.padded(total, 1.0).index_select(0, bins.cluster) > 0, weight, 1.0)
    return weight, bins.sum(weight, backend)


def _all_count(total: Tensor) -> bool:
    """True if no cluster's weights sum to zero; where a look would wait for the device, the cure is cheaper."""
    return may_look(total) and total.numel() > 0 and float(total.detach().min()) > 0
