"""A hard coarsening: every token belongs to one cluster, or to the bin of dropped tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokengraph.flat.layout import flat_ids
from tokengraph.flat.segment import row_norm, segment_max, segment_sum, weighted_sum, wide, with_norm
from tokengraph.flat.tables import equal_ptr
from tokengraph.maps.check import check_clusters
from tokengraph.maps.follows import Follows, Map
from tokengraph.maps.pyg import clusters_of, select_output

if TYPE_CHECKING:
    from torch_geometric.nn.pool.select import SelectOutput

REDUCTIONS = ("mean", "sum", "max", "mlerp")


@dataclass(frozen=True, eq=False)
class Assignment:
    r"""A map from M tokens to K clusters, flat over the whole batch.

    With ``S [M, K]`` the 0/1 matrix of the map: ``reduce`` is :math:`\operatorname{diag}(S^T s)^{-1} S^T
    \operatorname{diag}(s) X`, ``connect`` is :math:`S^T A S`, ``lift`` is :math:`S X'` and ``then`` is the product of
    two maps. It costs one int64 a token; no ``[M, K]`` matrix is ever made.

    Args:
        cluster: Cluster of each token, ``[M]`` int64 in ``[0, K]``. Value K is the bin of dropped tokens.
        num_clusters: K, the number of clusters in the whole batch.
        drops: Whether any token may be in the bin. ``False`` promises that none is, and saves one copy.
        ptr: First token of each image, ``[B+1]``; ``None`` means unknown (one image, or not needed).
        cluster_ptr: First cluster of each image, ``[B+1]``.
        centers: Token that represents each cluster, ``[K]`` flat ids, where the method has one.
        single: Promises that each cluster is one token, its center: then ``reduce`` only picks rows.
        counts: Clusters of each image, where they differ (ragged); ``None``: all have the same number, or nobody knows.

    Example:
        >>> a = Assignment(torch.tensor([0, 0, 1]), 2)
        >>> x, size = a.reduce(torch.tensor([[1.0], [3.0], [5.0]]))
        >>> x.tolist(), size.tolist(), a.lift(x).tolist()
        ([[2.0], [5.0]], [2.0, 1.0], [[2.0], [2.0], [5.0]])
    """

    cluster: Tensor
    num_clusters: int
    drops: bool = False
    ptr: Tensor | None = None
    cluster_ptr: Tensor | None = None
    centers: Tensor | None = None
    single: bool = False
    counts: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.single and self.centers is None:
            raise ValueError("Expected centers with single=True (got None). Say which token each cluster is.")
        if self.cluster.dim() != 1 or self.cluster.dtype != torch.long:
            raise ValueError(
                f"Expected cluster of shape [M] and dtype int64 (got {list(self.cluster.shape)}, "
                f"{self.cluster.dtype}). Build one from [B, N] with Assignment.from_dense."
            )

    @property
    def num_tokens(self) -> int:
        """M, the number of tokens that the map takes."""
        return self.cluster.size(0)

    @property
    def lossy(self) -> bool:
        """True if mass may be lost because some tokens may be dropped."""
        return self.drops

    @classmethod
    def identity(cls, num_tokens: int, *, ptr: Tensor | None = None, device: torch.device | None = None) -> Assignment:
        """The map that keeps every one of ``num_tokens`` tokens as it is."""
        ids = torch.arange(num_tokens, device=device)
        return cls(ids, num_tokens, ptr=ptr, cluster_ptr=ptr, centers=ids, single=True)

    @classmethod
    def from_dense(
        cls,
        cluster: Tensor,
        num_clusters: int | list[int],
        *,
        mask: Tensor | None = None,
        drops: bool = False,
        centers: Tensor | None = None,
        single: bool = False,
    ) -> Assignment:
        """Builds the flat map from cluster numbers within each image.

        Args:
            cluster: ``[B, N]`` int64; in ``[0, K_b)`` within image b, and -1 for dropped tokens where ``drops``.
            num_clusters: Clusters an image, one int for all or one an image (ragged).
            mask: ``[B, N]`` bool; True where there is a token. Rows of padding leave the map altogether.
            drops: Whether ``cluster`` may hold -1.
            centers: ``[B, K]`` token within the image that represents each cluster (rows past K_b are ignored).
            single: Promises that each cluster is its center alone.

        Returns:
            A map over the ``B*N`` tokens, or over the True ones of ``mask`` in order.

        Raises:
            ValueError: For shapes that do not fit; on CPU also for numbers outside ``[0, K_b)``, or below -1.

        Cost: a few passes over ``[B, N]`` ints; with a ragged count one host synchronisation on CUDA.
        """
        if cluster.dim() != 2:
            raise ValueError(f"Expected cluster of shape [B, N] (got {list(cluster.shape)}).")
        images, tokens = cluster.shape
        device = cluster.device
        if isinstance(num_clusters, list) and len(num_clusters) != images:
            raise ValueError(f"Expected one number of clusters an image, B={images} (got {len(num_clusters)}).")
        if mask is not None and (mask.shape != cluster.shape or mask.dtype != torch.bool):
            raise ValueError(
                f"Expected mask of shape {[images, tokens]} and dtype bool (got {list(mask.shape)}, {mask.dtype})."
            )
        if isinstance(num_clusters, list):
            counts = torch.tensor([0, *num_clusters], device=device).cumsum(0)
            start, total = counts[:-1], sum(num_clusters)
        else:
            counts = equal_ptr(images, num_clusters, device)
            start, total = counts[:-1], images * num_clusters
        check_clusters(cluster, num_clusters, mask, drops)
        flat = cluster + start[:, None]
        if drops:
            flat = torch.where(cluster < 0, total, flat)
        ptr = equal_ptr(images, tokens, device)
        if mask is not None:
            flat = flat[mask]
            ptr = torch.cat([ptr.new_zeros(1), mask.sum(1).cumsum(0)])
        if centers is not None:
            centers = flat_ids(centers, tokens, mask, counts.diff() if isinstance(num_clusters, list) else None)
        each = tuple(num_clusters) if isinstance(num_clusters, list) and len(set(num_clusters)) > 1 else None
        return cls(flat.flatten(), total, drops, ptr, counts, centers, single, each)

    def reduce(
        self, x: Tensor, size: Tensor | None = None, *, reduce: str = "mean", backend: str = "auto"
    ) -> tuple[Tensor, Tensor]:
        r"""Pools token rows into cluster rows.

        .. math:: x'_m = \sum_{c(i)=m} s_i x_i \,/\, s'_m, \qquad s'_m = \sum_{c(i)=m} s_i

        Args:
            x: Token rows, ``[M, C]`` (or ``[M]``).
            size: Input patches each token stands for, ``[M]`` float32; ``None`` means one each.
            reduce: ``"mean"`` (weighted by size), ``"sum"`` (of the rows, sizes ignored), ``"max"``, or ``"mlerp"``
                (the mean's direction with the largest member's norm).
            backend: ``"index_add"``, ``"segment"`` (sorted segments, by torch-scatter where it is installed), or
                ``"auto"``: index_add, and segments on CUDA when deterministic algorithms are asked for.

        Returns:
            Cluster rows ``[K, C]`` in the dtype of ``x``, summed in float32 or wider, and sizes ``[K]`` float32. A
            cluster without tokens gets zeros.

        Raises:
            ValueError: On a wrong number of rows or an unknown name.
            TypeError: On rows without fractions for a mean or mlerp.

        Cost: ``O(M C)``, one weighted copy of ``x``; no host synchronisation.

        Source: size-weighted mean: Bolya et al., *Token Merging*, ICLR 2023. MLERP: Kim et al., *Token Fusion*,
        WACV 2024.
        """
        self._check_rows(x, self.num_tokens, "x")
        if reduce not in REDUCTIONS:
            raise ValueError(f"Expected reduce to be one of {', '.join(REDUCTIONS)} (got {reduce!r}).")
        if reduce in ("mean", "mlerp") and not (x.is_floating_point() or x.is_complex()):
            raise TypeError(f"Expected floating-point x to take a {reduce} of (got {x.dtype}). Convert with .float().")
        if size is None:
            size = x.new_ones(self.num_tokens, dtype=torch.float32)
        elif size.shape != (self.num_tokens,):
            raise ValueError(f"Expected size of shape [M={self.num_tokens}] (got {list(size.shape)}).")
        size = size.to(wide(size))
        if self.single:
            assert self.centers is not None
            return x.index_select(0, self.centers), size.index_select(0, self.centers)
        new_size = self._sum(size, backend)
        if reduce == "sum":
            return self._sum(x, backend), new_size
        if reduce == "max":
            return self._trim(segment_max(x, self.cluster, self._rows)), new_size
        # Normalising the weights first makes lone tokens exact copies (weight s/s = 1) and spares a pass over [K, C].
        total = self._padded(new_size, 1.0).clamp_min(torch.finfo(torch.float32).tiny)
        weight = size / total.index_select(0, self.cluster)
        mean = self._trim(weighted_sum(x, weight, self.cluster, self._rows, backend=backend)).to(x.dtype)
        if reduce == "mlerp":
            mean = with_norm(mean, self._trim(segment_max(row_norm(x), self.cluster, self._rows)))
        return mean, new_size

    def connect(
        self, edge_index: Tensor, edge_weight: Tensor | None = None, *, loops: bool = True
    ) -> tuple[Tensor, Tensor]:
        r"""Connects clusters whose tokens are connected: :math:`A' = S^T A S`.

        Args:
            edge_index: ``[2, E]`` token edges, source to target.
            edge_weight: ``[E]``; ``None`` counts edges.
            loops: Keep the diagonal, which holds the edges inside a cluster.

        Returns:
            ``edge_index`` ``[2, E']`` sorted by source then target, each pair once, and the summed ``edge_weight``
            ``[E']``. Edges at dropped tokens go with them.

        Cost: ``O(E log E)``; the number of edges depends on the data (a host synchronisation on CUDA).
        """
        from torch_geometric.utils import coalesce

        if edge_weight is None:
            edge_weight = torch.ones(edge_index.size(1), dtype=torch.float32, device=edge_index.device)
        ends = self.cluster[edge_index]
        keep = (ends < self.num_clusters).all(dim=0)
        if not loops:
            keep &= ends[0] != ends[1]
        index, weight = coalesce(ends[:, keep], edge_weight[keep], num_nodes=self.num_clusters, reduce="sum")
        return index, weight

    def lift(self, y: Tensor, fill: Tensor | None = None) -> Tensor:
        """Gives every token its cluster's row: ``[K, C]`` to ``[M, C]``.

        Args:
            y: Cluster rows, ``[K, C]``.
            fill: Rows ``[M, C]`` that dropped tokens get instead of zeros.

        Cost: one gather of ``[M, C]``; one more copy when tokens may have been dropped.
        """
        self._check_rows(y, self.num_clusters, "y")
        if not self.drops:
            return y.index_select(0, self.cluster)
        out = self._padded(y).index_select(0, self.cluster)
        if fill is None:
            return out
        self._check_rows(fill, self.num_tokens, "fill")
        kept = (self.cluster < self.num_clusters).view(-1, *[1] * (y.dim() - 1))
        return torch.where(kept, out, fill.to(out.dtype))

    def then(self, other: Follows[Map]) -> Map:
        """Composes with a coarsening of the clusters: reducing by the result equals reducing by both in turn."""
        return other.after(self)

    def after(self, first: Assignment) -> Assignment:
        """``first.then(self)``."""
        self, other = first, self
        if other.num_tokens != self.num_clusters:
            raise ValueError(f"Expected a map over K={self.num_clusters} clusters (got one over {other.num_tokens}).")
        table = other.cluster
        if self.drops:
            table = torch.cat([table, table.new_full((1,), other.num_clusters)])
        centers = None if self.centers is None or other.centers is None else self.centers[other.centers]
        return Assignment(
            table.index_select(0, self.cluster),
            other.num_clusters,
            self.drops or other.drops,
            self.ptr,
            other.cluster_ptr,
            centers,
            self.single and other.single,
            other.counts,
        )

    def to(self, device: torch.device | str) -> Assignment:
        """The same map on another device."""
        moved = {k: v.to(device) for k, v in self.__dict__.items() if isinstance(v, Tensor)}
        return replace(self, **moved)

    def to_select_output(self) -> SelectOutput:
        """The map as PyG's ``SelectOutput``; dropped tokens are left out of it."""
        return select_output(self.cluster, self.num_clusters, self.drops)

    @classmethod
    def from_select_output(cls, output: SelectOutput) -> Assignment:
        """Reads PyG's ``SelectOutput``: nodes in one cluster, or in none (dropped). Ignores its weights."""
        return cls(*clusters_of(output))

    @property
    def _rows(self) -> int:
        return self.num_clusters + 1 if self.drops else self.num_clusters

    def _trim(self, rows: Tensor) -> Tensor:
        return rows[: self.num_clusters] if self.drops else rows

    def _padded(self, rows: Tensor, bin_row: float = 0.0) -> Tensor:
        return torch.cat([rows, rows.new_full((1, *rows.shape[1:]), bin_row)]) if self.drops else rows

    def _sum(self, x: Tensor, backend: str) -> Tensor:
        return self._trim(segment_sum(x, self.cluster, self._rows, backend=backend)).to(x.dtype)

    @staticmethod
    def _check_rows(x: Tensor, rows: int, name: str) -> None:
        if x.dim() < 1 or x.size(0) != rows:
            raise ValueError(
                f"Expected {name} with {rows} rows (got shape {list(x.shape)}). "
                "Rows are flat over the batch: flatten [B, N, C] with .flatten(0, 1)."
            )
