"""A hard coarsening: every token belongs to one cluster, or to the bin of dropped tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tokengraph.flat.looks import may_differentiate
from tokengraph.flat.segment import as_type, takes_bags, wide
from tokengraph.flat.tables import equal_ptr, ones
from tokengraph.kinds import explain_methods
from tokengraph.maps.check import check_each, check_rows
from tokengraph.maps.connect import connect_hard
from tokengraph.maps.dense import flatten_clusters
from tokengraph.maps.follows import Follows, Map
from tokengraph.maps.pool import MEANS, Bins, check_pooling, counted, pool, pool_sorted, with_bin
from tokengraph.maps.pyg import clusters_of, select_output
from tokengraph.maps.shown import shown

if TYPE_CHECKING:
    from torch_geometric.nn.pool.select import SelectOutput


@explain_methods
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
        counts: Clusters of each image, if they differ (ragged); ``None`` if all have the same number or it is unknown.
        weight: Weight of each token's row in a mean, ``[M]``; ``None`` means its size. Sizes are summed either way.
        mass: Contribution of each token to its cluster's size, ``[M]``; ``None`` means its size.
        steps: The maps that this one is composed of, if their weights or masses rule out a reduction in one pass.
            ``reduce`` then applies them one after another.

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
    weight: Tensor | None = None
    mass: Tensor | None = None
    steps: tuple[Assignment, ...] = ()

    def __post_init__(self) -> None:
        if self.single and self.centers is None:
            raise ValueError("Expected centers with single=True (got None). Say which token each cluster is.")
        if self.cluster.dim() != 1 or self.cluster.dtype != torch.long:
            raise ValueError(
                f"Expected cluster of shape [M] and dtype int64 (got {list(self.cluster.shape)}, "
                f"{self.cluster.dtype}). Build one from [B, N] with Assignment.from_dense."
            )
        if self.weight is not None or self.mass is not None:
            check_each(self.cluster.shape, weight=self.weight, mass=self.mass)

    def __repr__(self) -> str:
        return shown(self)

    @property
    def num_tokens(self) -> int:
        """M, the number of tokens at the input of the map."""
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
        weight: Tensor | None = None,
        mass: Tensor | None = None,
        check: bool = True,
    ) -> Assignment:
        """Builds the flat map from cluster numbers within each image.

        Args:
            cluster: ``[B, N]`` int64; in ``[0, K_b)`` within image b, and -1 for dropped tokens where ``drops``.
            num_clusters: Clusters an image, one int for all or one an image (ragged).
            mask: ``[B, N]`` bool; True where there is a token. Rows of padding leave the map altogether.
            drops: Whether ``cluster`` may hold -1.
            centers: ``[B, K]`` token within the image that represents each cluster (rows past K_b are ignored).
            single: Promises that each cluster is its center alone.
            weight: Weight of each token's row in a mean, ``[B, N]``.
            mass: Contribution of each token to its cluster's size, ``[B, N]``.
            check: Reads the numbers on CPU and raises if they do not fit; ``False`` for numbers that cannot be wrong.

        Returns:
            A map over the ``B*N`` tokens, or over the True ones of ``mask`` in order.

        Raises:
            ValueError: For shapes that do not fit; on CPU also for numbers outside ``[0, K_b)``, or below -1.

        Cost: a few passes over ``[B, N]`` ints; with a ragged count one host synchronisation on CUDA.
        """
        fields, each = flatten_clusters(cluster, num_clusters, mask, drops, centers, check)
        if weight is not None or mass is not None:
            check_each(cluster.shape, weight=weight, mass=mass)
            weight, mass = (t if t is None else t.flatten() if mask is None else t[mask] for t in (weight, mass))
        return cls(*fields, single, each, weight, mass)

    def reduce(
        self, x: Tensor, size: Tensor | None = None, *, reduce: str = "mean", backend: str = "auto"
    ) -> tuple[Tensor, Tensor]:
        r"""Pools token rows into cluster rows.

        .. math:: x'_m = \sum_{c(i)=m} w_i x_i \,/\, \sum_{c(i)=m} w_i, \qquad s'_m = \sum_{c(i)=m} s_i

        with the size as weight, :math:`w = s`, unless the map has a ``weight``. If the map has a ``mass``, cluster
        sizes are sums of masses.

        Args:
            x: Token rows, ``[M, C]`` (or ``[M]``).
            size: Input patches each token stands for, ``[M]`` float32; ``None`` means one each.
            reduce: ``"mean"`` (weighted), ``"sum"`` (of the rows, weights ignored), ``"max"``, ``"absmax"`` (the value
                of largest magnitude in each channel, positive in a tie), ``"mlerp"`` (the mean's direction with the
                largest member's norm), ``"center"`` (the center's row) or ``"released-mlerp"`` (see ``ToFu``).
            backend: ``"index_add"``, ``"segment"`` (sorted segments, by torch-scatter where it is installed), or
                ``"auto"``: index_add, and segments on CUDA when deterministic algorithms are asked for.

        Returns:
            Cluster rows ``[K, C]`` in the dtype of ``x``, summed in float32 or wider, and sizes ``[K]`` float32. A
            cluster without tokens gets zeros; one whose weights sum to zero takes the plain mean.

        Raises:
            ValueError: On a wrong number of rows, an unknown name, or a reduction by centers without centers.
            TypeError: On rows without fractions for a mean or mlerp.

        Cost: ``O(M C)``, one weighted copy of ``x``, none for ``"center"``; no host synchronisation.

        Source: size-weighted mean: Bolya et al., *Token Merging*, ICLR 2023. MLERP: Kim et al., *Token Fusion*,
        WACV 2024.
        """
        check_rows(x, self.num_tokens, "x")
        check_pooling(x, reduce, self.centers)
        if size is None:
            size = ones(self.num_tokens, x.device)
        elif size.shape != (self.num_tokens,):
            raise ValueError(f"Expected size of shape [M={self.num_tokens}] (got {list(size.shape)}).")
        size = as_type(size, wide(size))
        for step in self.steps:
            x, size = step.reduce(x, size, reduce=reduce, backend=backend)
        return (x, size) if self.steps else self._reduce(x, size, reduce, backend)

    def _reduce(self, x: Tensor, size: Tensor, reduce: str, backend: str) -> tuple[Tensor, Tensor]:
        mass = size if self.mass is None else as_type(self.mass, wide(self.mass))
        if self.single:
            assert self.centers is not None
            return x.index_select(0, self.centers), mass.index_select(0, self.centers)
        bins = Bins(self.cluster, self.num_clusters, self.drops, self._most())
        own = size if self.weight is None else as_type(self.weight, wide(self.weight))
        apart = mass is not own and may_differentiate(mass)
        if reduce in MEANS and not apart and takes_bags(x, own, self.cluster, backend):
            return pool_sorted(x, bins, own, mass, reduce, self.centers, given=self.weight is not None)
        new_size = bins.sum(mass, backend)
        if reduce == "center":
            assert self.centers is not None
            return x.index_select(0, self.centers), new_size
        weight, total = (size, new_size) if self.weight is None else counted(self.weight, bins, backend)
        total = bins.sum(size, backend) if self.weight is None and self.mass is not None else total
        return pool(x, bins, weight, total, reduce, backend, self.centers), new_size

    def _most(self) -> int:
        """Returns how many tokens a cluster has at most, as far as metadata tell."""
        images = 1 if self.ptr is None else self.ptr.numel() - 1
        each = self.num_tokens // max(images, 1)
        return each if images > 1 and self.ptr is equal_ptr(images, each, self.cluster.device) else self.num_tokens

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
            ``[E']``. Edges at dropped tokens are dropped.

        Cost: ``O(E log E)``; the number of edges depends on the data (a host synchronisation on CUDA).
        """
        return connect_hard(self.cluster, self.num_clusters, edge_index, edge_weight, loops)

    def lift(self, y: Tensor, fill: Tensor | None = None) -> Tensor:
        """Gives every token its cluster's row: ``[K, C]`` to ``[M, C]``.

        Args:
            y: Cluster rows, ``[K, C]``.
            fill: Rows ``[M, C]`` that dropped tokens get instead of zeros.

        Cost: one gather of ``[M, C]``; one more copy when tokens may have been dropped.
        """
        check_rows(y, self.num_clusters, "y")
        out = Bins(self.cluster, self.num_clusters, self.drops).lift(y)
        if fill is None or not self.drops:
            return out
        check_rows(fill, self.num_tokens, "fill")
        kept = (self.cluster < self.num_clusters).view(-1, *[1] * (y.dim() - 1))
        return torch.where(kept, out, fill.to(out.dtype))

    def then(self, other: Follows[Map]) -> Map:
        """Composes with a coarsening of the clusters; the result reduces as both maps do one after another."""
        return other.after(self)

    def after(self, first: Assignment) -> Assignment:
        """``first.then(self)``."""
        self, other = first, self
        if other.num_tokens != self.num_clusters:
            raise ValueError(f"Expected a map over K={self.num_clusters} clusters (got one over {other.num_tokens}).")
        table = other.cluster
        if self.drops:
            table = with_bin(table, other.num_clusters)
        centers = None if self.centers is None or other.centers is None else self.centers.index_select(0, other.centers)
        return Assignment(
            table.index_select(0, self.cluster),
            other.num_clusters,
            self.drops or other.drops,
            self.ptr,
            other.cluster_ptr,
            centers,
            self.single and other.single,
            other.counts,
            steps=self.in_turn + other.in_turn if self.counts_apart or other.counts_apart else (),
        )

    @property
    def counts_apart(self) -> bool:
        """True if the map or one of its steps has weights or masses of its own."""
        return self.weight is not None or self.mass is not None or len(self.steps) > 0

    @property
    def in_turn(self) -> tuple[Assignment, ...]:
        """The maps that ``reduce`` applies one after another."""
        return self.steps or (self,)

    def by_size(self) -> Assignment:
        """Returns the map without weight and mass: every input patch counts alike, as for positions and masks."""
        return replace(self, weight=None, mass=None, steps=()) if self.counts_apart else self

    def to(self, device: torch.device | str) -> Assignment:
        """The same map on another device."""
        moved: dict[str, Any] = {k: v.to(device) for k, v in self.__dict__.items() if isinstance(v, Tensor)}
        return replace(self, steps=tuple(step.to(device) for step in self.steps), **moved)

    def to_select_output(self) -> SelectOutput:
        """Returns the map as PyG's ``SelectOutput`` with ``weight`` and ``mass``; dropped tokens are left out."""
        return select_output(self.cluster, self.num_clusters, self.drops, self.weight, self.mass)

    @classmethod
    def from_select_output(cls, output: SelectOutput) -> Assignment:
        """Reads PyG's ``SelectOutput`` in which each node has at most one cluster; nodes without one are dropped.

        PyG's weights are node scores, so they are ignored unless :meth:`to_select_output` made the output.

        Raises:
            ValueError: If a node is in several clusters.
        """
        cluster, count, drops, weight, mass = clusters_of(output)
        return cls(cluster, count, drops, weight=weight, mass=mass)
