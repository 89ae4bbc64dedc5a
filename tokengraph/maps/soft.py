"""A soft coarsening by weighted edges between tokens and clusters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from tokengraph.flat.looks import may_write
from tokengraph.flat.segment import TINY, as_type, crowded, segment_sum, takes_bags, weighted_sum
from tokengraph.kinds import explain_methods
from tokengraph.maps.check import check_each, check_rows
from tokengraph.maps.connect import connect_soft
from tokengraph.maps.edge_sums import add_extra, sorted_sums
from tokengraph.maps.hard import Assignment
from tokengraph.maps.matrix import matrix_fields
from tokengraph.maps.product import Edges, product
from tokengraph.maps.shown import shown

__all__ = ["Edges", "SoftAssignment"]


@explain_methods
@dataclass(frozen=True, eq=False)
class SoftAssignment:
    r"""Weighted edges from M tokens to K clusters, flat over the whole batch, with their own way back.

    The same four methods as :class:`~tokengraph.Assignment`. A token may feed several clusters, or none (it is
    dropped); weights need not sum to one.

    Args:
        token: Token of each edge, ``[E]`` int64 in ``[0, M)``.
        cluster: Cluster of each edge, ``[E]`` int64 in ``[0, K)``.
        weight: Weight of each edge, ``[E]``. Gradients reach it through ``reduce`` and ``lift``.
        num_tokens: M.
        num_clusters: K.
        normalize: ``True``: ``reduce`` is the mean weighted by ``weight * size``; ``False``: the plain weighted sum;
            ``None``: a composition of both kinds, which supports only ``lift`` and ``connect``.
        up: Edges ``(token, cluster, weight)`` for ``lift``, if it is not the row-normalised transpose; or a function
            that computes them when ``lift`` needs them.
        ptr: First token of each image, ``[B+1]``.
        cluster_ptr: First cluster of each image, ``[B+1]``.
        centers: Token that stands for each cluster, ``[K]`` flat ids, where the method has one.
        centroids: ``reduce`` of the features that the map was made from, ``[K, C]``, if already computed.
        lossless: Promises that each token's weights sum to one, so that no mass is lost.
        counts: Clusters of each image, if they differ; ``None`` if all have the same number or it is unknown.
        mass: What each token, times its edge weights, adds to the sizes of its clusters, ``[M]``; ``None``: its size.
        steps: The maps that it is composed of, if ``reduce`` must apply them one after another (weights, masses).
        others: Promises that edge m comes from cluster m's center with weight 1, and at most so many others follow.
    """

    token: Tensor
    cluster: Tensor
    weight: Tensor
    num_tokens: int
    num_clusters: int
    normalize: bool | None = True
    up: Edges | Callable[[], Edges] | None = None
    ptr: Tensor | None = None
    cluster_ptr: Tensor | None = None
    centers: Tensor | None = None
    centroids: Tensor | None = None
    lossless: bool = False
    counts: tuple[int, ...] | None = None
    mass: Tensor | None = None
    steps: tuple[Assignment | SoftAssignment, ...] = ()
    others: int | None = None

    def __post_init__(self) -> None:
        if not self.token.shape == self.cluster.shape == self.weight.shape or self.token.dim() != 1:
            raise ValueError(
                "Expected token, cluster and weight of one shape [E] "
                f"(got {list(self.token.shape)}, {list(self.cluster.shape)}, {list(self.weight.shape)})."
            )
        if self.mass is not None:
            check_each(torch.Size((self.num_tokens,)), mass=self.mass)

    def __repr__(self) -> str:
        return shown(self)

    @property
    def lossy(self) -> bool:
        """True if mass may be lost, because a token's weights need not sum to one."""
        return not self.lossless

    @classmethod
    def from_hard(cls, hard: Assignment) -> SoftAssignment:
        """Returns the map as edges of weight one; dropped tokens have none."""
        output = hard.to_select_output()
        weighed = hard.weight is not None or len(hard.steps) > 0  # edges cannot represent these
        weight = torch.ones(output.node_index.numel(), dtype=torch.float32, device=hard.cluster.device)
        return cls(
            output.node_index,
            output.cluster_index,
            weight,
            hard.num_tokens,
            hard.num_clusters,
            ptr=hard.ptr,
            cluster_ptr=hard.cluster_ptr,
            centers=hard.centers,
            lossless=not hard.lossy,
            counts=hard.counts,
            mass=None if weighed else hard.mass,
            steps=hard.in_turn if weighed else (),
        )

    @classmethod
    def from_matrix(
        cls,
        matrix: Tensor,
        num_clusters: int | list[int] | None = None,
        *,
        normalize: bool = True,
        mask: Tensor | None = None,
        topk: int | None = None,
        centers: Tensor | None = None,
        lossless: bool = False,
    ) -> SoftAssignment:
        """Builds the map from a weight matrix for each image, such as one of your own method: ``W[b, i, m]``.

        Args:
            matrix: Weight of token i in cluster m, ``[B, N, M]`` floats. Gradients reach it.
            num_clusters: Clusters an image, or one number for each image; further columns are ignored. ``None``: M.
            normalize: ``True``: cluster rows are means by ``W * size``; ``False``: sums.
            mask: ``[B, N]`` bool, True at tokens; other rows are ignored.
            topk: Keeps only each token's k largest weights, scaled to the sum of all: k edges a token, not M.
            centers: ``[B, M]`` token within the image that represents each cluster.
            lossless: Promises that each token's weights sum to one, so that no mass is lost.

        Raises:
            ValueError: For shapes that do not fit, or ``topk`` below 1.
            TypeError: If ``matrix`` is not floating-point.

        Cost: ``B N M`` edges, or ``B N k`` and a sort; a host synchronisation on CUDA if images differ.
        """
        return cls(**matrix_fields(matrix, num_clusters, mask, topk, centers), normalize=normalize, lossless=lossless)

    def reduce(self, x: Tensor, size: Tensor | None = None, *, backend: str = "auto") -> tuple[Tensor, Tensor]:
        r"""Pools token rows ``[M, C]`` into cluster rows ``[K, C]``.

        .. math:: x'_m = \sum_i w_{im} s_i x_i \,/\, \sum_i w_{im} s_i \;\text{(normalize)}, \qquad
                  s'_m = \sum_i w_{im} s_i

        Without ``normalize`` the rows are :math:`\sum_i w_{im} x_i`; with a ``mass`` the sizes are
        :math:`\sum_i w_{im} \mu_i`. Sums run in float32 or wider; rows have the dtype of ``x``.

        Args:
            x: Token rows, ``[M, C]``.
            size: Input patches each token stands for, ``[M]`` float32; ``None`` means one each.
            backend: As for :meth:`tokengraph.Assignment.reduce`.

        Returns:
            Cluster rows ``[K, C]`` and sizes ``[K]`` float32.

        Raises:
            ValueError: On a wrong number of rows, or for a composition of maps of which some normalize.

        Cost: ``O(E C)`` time and one copy of the edges' rows.
        """
        check_rows(x, self.num_tokens, "x")
        if self.normalize is None and not self.steps:
            both = "Expected a map that averages or one that sums (got a composition of both kinds). "
            raise ValueError(both + "Reduce by each map in turn.")
        if size is not None and size.shape != (self.num_tokens,):
            raise ValueError(f"Expected size of shape [M={self.num_tokens}] (got {list(size.shape)}).")
        if self.steps:
            size = x.new_ones(self.num_tokens, dtype=torch.float32) if size is None else size
            for step in self.steps:
                x, size = step.reduce(x, size, backend=backend)
            return x, size
        if self.adds(x, backend):
            assert self.centers is not None
            extra = (ends[self.num_clusters :] for ends in (self.token, self.cluster, self.weight))
            return add_extra(x, size, self.centers, *extra)
        mass = self.weight if size is None else self.weight * size.index_select(0, self.token)
        if self.mass is None and takes_bags(x, self.weight, self.cluster, backend, copies=True):
            return sorted_sums(x, self.weight, mass, self.token, self.cluster, self.num_clusters, bool(self.normalize))
        total = segment_sum(mass, self.cluster, self.num_clusters, backend=backend)
        new_size, weight = total, self.weight
        if self.mass is not None:
            own = self.weight * self.mass.index_select(0, self.token)
            new_size = segment_sum(own, self.cluster, self.num_clusters, backend=backend)
        if self.normalize:
            weight = mass / total.clamp_min(TINY).index_select(0, self.cluster)
        return self._propagate(x, self.token, self.cluster, weight, self.num_clusters, backend), new_size

    def adds(self, x: Tensor, backend: str = "auto") -> bool:
        """True if ``reduce`` picks the centers' rows and adds those of other edges to them."""
        if self.others is None or self.normalize or self.counts_apart or backend != "auto" or not may_write(x):
            return False
        sums = crowded(x, self.cluster[self.num_clusters :], self.others)  # in float32 would lose digits
        return not sums and not (x.is_cuda and torch.are_deterministic_algorithms_enabled())

    def connect(
        self, edge_index: Tensor, edge_weight: Tensor | None = None, *, loops: bool = True
    ) -> tuple[Tensor, Tensor]:
        r"""Connects clusters whose tokens are connected: :math:`A' = S^T A S` with the weighted ``S``.

        Args:
            edge_index: ``[2, E]`` token edges, source to target.
            edge_weight: ``[E]``; ``None`` counts edges.
            loops: Keep the diagonal, which holds the edges inside a cluster.

        Returns:
            ``edge_index`` ``[2, E']`` sorted by source then target, each pair once, and ``edge_weight`` ``[E']``.
        """
        return connect_soft((self.token, self.cluster, self.weight), self.num_tokens, edge_index, edge_weight, loops)

    def lift(self, y: Tensor, fill: Tensor | None = None) -> Tensor:
        """Expands cluster rows ``[K, C]`` to token rows ``[M, C]``: a weighted mean, or the edges of ``up``.

        Args:
            y: Cluster rows, ``[K, C]``.
            fill: Rows ``[M, C]`` for tokens without an edge; zeros by default.

        Cost: ``O(E C)`` time and one copy of the edges' rows.
        """
        check_rows(y, self.num_clusters, "y")
        token, cluster, weight = self.way_back()
        out = self._propagate(y, cluster, token, weight, self.num_tokens, "auto")
        if fill is None:
            return out
        check_rows(fill, self.num_tokens, "fill")
        reached = segment_sum((weight != 0).float(), token, self.num_tokens) > 0
        return torch.where(reached.view(-1, *[1] * (y.dim() - 1)), out, fill.to(out.dtype))

    def after(self, first: Assignment) -> SoftAssignment:
        """Returns ``first.then(self)``, the composition of ``first`` and this map."""
        return SoftAssignment.from_hard(first).then(self)

    def then(self, other: Assignment | SoftAssignment) -> SoftAssignment:
        """Composes with a coarsening of the clusters; multiplies out the edges of ``reduce`` and of ``lift``.

        The result can ``reduce`` if both maps normalize or neither does.

        Raises:
            ValueError: If ``other`` is a map over another number of clusters.
        """
        other = SoftAssignment.from_hard(other) if isinstance(other, Assignment) else other
        if other.num_tokens != self.num_clusters:
            raise ValueError(f"Expected a map over K={self.num_clusters} clusters (got one over {other.num_tokens}).")
        down = (self.token, self.cluster, self.weight), (other.token, other.cluster, other.weight)
        return SoftAssignment(
            *product(*down, self.num_clusters),
            self.num_tokens,
            other.num_clusters,
            self.normalize if self.normalize == other.normalize else None,
            product(self.way_back(), other.way_back(), self.num_clusters),
            self.ptr,
            other.cluster_ptr,
            None if self.centers is None or other.centers is None else self.centers[other.centers],
            lossless=self.lossless and other.lossless,
            counts=other.counts,
            steps=self.in_turn + other.in_turn if self.counts_apart or other.counts_apart else (),
        )

    @property
    def counts_apart(self) -> bool:
        """True if the map or one of its steps has masses of its own."""
        return self.mass is not None or len(self.steps) > 0

    @property
    def in_turn(self) -> tuple[Assignment | SoftAssignment, ...]:
        """The maps that ``reduce`` applies one after another."""
        return self.steps or (self,)

    def by_size(self) -> SoftAssignment:
        """Returns the map as a mean by edge weights and sizes alone, as for positions and masks."""
        return replace(self, normalize=True, mass=None, steps=())

    def to(self, device: torch.device | str) -> SoftAssignment:
        """The same map on another device."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {name: value.to(device) for name, value in moved.items() if isinstance(value, Tensor)}
        up = None if self.up is None else tuple(t.to(device) for t in self.way_back())
        return replace(self, up=up, steps=tuple(step.to(device) for step in self.steps), **moved)

    def way_back(self) -> Edges:
        """Returns the edges ``(token, cluster, weight)`` that :meth:`lift` uses."""
        if callable(self.up):
            return self._made(self.up)
        if self.up is not None:
            return self.up
        total = segment_sum(self.weight, self.token, self.num_tokens)
        scale = torch.where(total != 0, total, 1.0).index_select(0, self.token)
        return self.token, self.cluster, self.weight / scale

    def _made(self, up: Callable[[], Edges]) -> Edges:
        """Calls ``up``; caches the result without gradients, as checkpointing must see the same operations again."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return up()
        if "_kept_up" not in self.__dict__:
            self.__dict__["_kept_up"] = up()
        return self.__dict__["_kept_up"]

    @staticmethod
    def _propagate(x: Tensor, source: Tensor, target: Tensor, weight: Tensor, rows: int, backend: str) -> Tensor:
        return as_type(weighted_sum(x, weight, target, rows, source=source, backend=backend), x.dtype)
