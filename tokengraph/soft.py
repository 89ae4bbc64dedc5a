"""A soft coarsening: weighted edges between tokens and clusters."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokengraph.assignment import Assignment
from tokengraph.segment import segment_sum


@dataclass(frozen=True, eq=False)
class SoftAssignment:
    r"""Weighted edges from M tokens to K clusters, flat over the whole batch, with their own way back.

    The same four methods as :class:`~tokengraph.Assignment`. A token may feed several clusters (token clustering), or
    none (it is dropped); weights need not sum to one.

    Args:
        token: Token of each edge, ``[E]`` int64 in ``[0, M)``.
        cluster: Cluster of each edge, ``[E]`` int64 in ``[0, K)``.
        weight: Weight of each edge, ``[E]``. Gradients reach it through ``reduce`` and ``lift``.
        num_tokens: M.
        num_clusters: K.
        normalize: ``True``: ``reduce`` is the mean weighted by ``weight * size``; ``False``: the plain weighted sum;
            ``None``: a composition of both kinds, which only knows the way back and ``connect``.
        up: Edges of the way back ``(token, cluster, weight)``, where ``lift`` is not the row-normalised transpose.
        ptr: First token of each image, ``[B+1]``.
        cluster_ptr: First cluster of each image, ``[B+1]``.
    """

    token: Tensor
    cluster: Tensor
    weight: Tensor
    num_tokens: int
    num_clusters: int
    normalize: bool | None = True
    up: tuple[Tensor, Tensor, Tensor] | None = None
    ptr: Tensor | None = None
    cluster_ptr: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.token.shape == self.cluster.shape == self.weight.shape or self.token.dim() != 1:
            raise ValueError(
                "Expected token, cluster and weight of one shape [E] "
                f"(got {list(self.token.shape)}, {list(self.cluster.shape)}, {list(self.weight.shape)})."
            )

    @property
    def lossy(self) -> bool:
        """Whether mass may be lost: nothing promises that a token's weights sum to one."""
        return True

    @classmethod
    def from_hard(cls, hard: Assignment) -> SoftAssignment:
        """The same map as edges of weight one; dropped tokens have none."""
        output = hard.to_select_output()
        weight = torch.ones(output.node_index.numel(), device=hard.cluster.device)
        return cls(
            output.node_index,
            output.cluster_index,
            weight,
            hard.num_tokens,
            hard.num_clusters,
            ptr=hard.ptr,
            cluster_ptr=hard.cluster_ptr,
        )

    def reduce(self, x: Tensor, size: Tensor | None = None, *, backend: str = "auto") -> tuple[Tensor, Tensor]:
        r"""Pools token rows ``[M, C]`` into cluster rows ``[K, C]``.

        .. math:: x'_m = \sum_i w_{im} s_i x_i \,/\, \sum_i w_{im} s_i \;\text{(normalize)}, \qquad
                  s'_m = \sum_i w_{im} s_i

        Without ``normalize`` the rows are :math:`\sum_i w_{im} x_i`. Sums run in float32 or wider; the dtype of ``x``
        comes back. Cost: ``O(E C)`` time and one copy of the edges' rows.

        Raises:
            ValueError: On a wrong number of rows, or for a composition of maps of which some normalize.
        """
        Assignment._check_rows(x, self.num_tokens, "x")
        if self.normalize is None:
            raise ValueError(
                "Expected a map that averages or one that adds up (got a composition of both kinds). "
                "Reduce by each map in turn."
            )
        if size is None:
            size = x.new_ones(self.num_tokens, dtype=torch.float32)
        elif size.shape != (self.num_tokens,):
            raise ValueError(f"Expected size of shape [M={self.num_tokens}] (got {list(size.shape)}).")
        mass = self.weight * size.index_select(0, self.token)
        new_size = segment_sum(mass, self.cluster, self.num_clusters, backend=backend)
        weight = self.weight
        if self.normalize:
            weight = mass / new_size.clamp_min(torch.finfo(torch.float32).tiny).index_select(0, self.cluster)
        return self._propagate(x, self.token, self.cluster, weight, self.num_clusters, backend), new_size

    def connect(
        self, edge_index: Tensor, edge_weight: Tensor | None = None, *, loops: bool = True
    ) -> tuple[Tensor, Tensor]:
        r"""Connects clusters: :math:`A' = S^T A S` with the weighted ``S``, as sparse products.

        Returns ``edge_index [2, E']`` sorted by source then target and ``edge_weight [E']``; ``loops=False`` leaves
        the diagonal out.
        """
        if edge_weight is None:
            edge_weight = self.weight.new_ones(edge_index.size(1))
        dtype = torch.promote_types(torch.promote_types(edge_weight.dtype, self.weight.dtype), torch.float32)
        a = _sparse(edge_index, edge_weight.to(dtype), (self.num_tokens, self.num_tokens))
        s = self._matrix(dtype)
        out = torch.sparse.mm(torch.sparse.mm(s.t(), a), s).coalesce()
        index, weight = out.indices(), out.values()
        if not loops:
            keep = index[0] != index[1]
            index, weight = index[:, keep], weight[keep]
        return index, weight

    def lift(self, y: Tensor, fill: Tensor | None = None) -> Tensor:
        """Gives tokens a weighted mean of their clusters' rows, ``[K, C]`` to ``[M, C]``; or what ``up`` says.

        Tokens without an edge get zeros, or their row of ``fill [M, C]``.
        """
        Assignment._check_rows(y, self.num_clusters, "y")
        if self.up is None:
            total = segment_sum(self.weight, self.token, self.num_tokens)
            scale = torch.where(total != 0, total, 1.0).index_select(0, self.token)
            token, cluster, weight = self.token, self.cluster, self.weight / scale
        else:
            token, cluster, weight = self.up
        out = self._propagate(y, cluster, token, weight, self.num_tokens, "auto")
        if fill is None:
            return out
        Assignment._check_rows(fill, self.num_tokens, "fill")
        reached = torch.zeros(self.num_tokens, dtype=torch.bool, device=y.device)
        reached[token] = True
        return torch.where(reached.view(-1, *[1] * (y.dim() - 1)), out, fill.to(out.dtype))

    def then(self, other: Assignment | SoftAssignment) -> SoftAssignment:
        """Composes with a coarsening of the clusters; both ways, down and up, are multiplied out.

        The result can ``reduce`` where both maps normalize or neither does.
        """
        if isinstance(other, Assignment):
            other = SoftAssignment.from_hard(other)
        if other.num_tokens != self.num_clusters:
            raise ValueError(f"Expected a map over K={self.num_clusters} clusters (got one over {other.num_tokens}).")
        dtype = torch.promote_types(torch.promote_types(self.weight.dtype, other.weight.dtype), torch.float32)
        down = torch.sparse.mm(self._matrix(dtype), other._matrix(dtype)).coalesce()
        up = torch.sparse.mm(self._up_matrix(dtype), other._up_matrix(dtype)).coalesce()
        return SoftAssignment(
            down.indices()[0],
            down.indices()[1],
            down.values(),
            self.num_tokens,
            other.num_clusters,
            self.normalize if self.normalize == other.normalize else None,
            (up.indices()[0], up.indices()[1], up.values()),
            self.ptr,
            other.cluster_ptr,
        )

    def to(self, device: torch.device | str) -> SoftAssignment:
        """The same map on another device."""
        moved = {k: v.to(device) for k, v in self.__dict__.items() if isinstance(v, Tensor)}
        up = None if self.up is None else tuple(t.to(device) for t in self.up)
        return replace(self, up=up, **moved)

    def _matrix(self, dtype: torch.dtype) -> Tensor:
        index = torch.stack([self.token, self.cluster])
        return _sparse(index, self.weight.to(dtype), (self.num_tokens, self.num_clusters))

    def _up_matrix(self, dtype: torch.dtype) -> Tensor:
        shape = (self.num_tokens, self.num_clusters)
        if self.up is not None:
            return _sparse(torch.stack(self.up[:2]), self.up[2].to(dtype), shape)
        total = segment_sum(self.weight, self.token, self.num_tokens)
        scale = torch.where(total != 0, total, 1.0).index_select(0, self.token)
        return _sparse(torch.stack([self.token, self.cluster]), (self.weight / scale).to(dtype), shape)

    @staticmethod
    def _propagate(x: Tensor, source: Tensor, target: Tensor, weight: Tensor, rows: int, backend: str) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        messages = x.index_select(0, source) * weight.to(wide).view(-1, *[1] * (x.dim() - 1))
        return segment_sum(messages, target, rows, backend=backend).to(x.dtype)


def _sparse(index: Tensor, value: Tensor, shape: tuple[int, int]) -> Tensor:
    return torch.sparse_coo_tensor(index, value, shape, check_invariants=False).coalesce()
