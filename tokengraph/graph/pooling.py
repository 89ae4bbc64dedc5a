"""A strategy as a pooling layer of a graph neural network."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from tokengraph.errors import check_sorted, check_tokens
from tokengraph.graph.coarsen import apply, assign
from tokengraph.graph.fields import batch_layout
from tokengraph.graph.token_graph import TokenGraph
from tokengraph.kinds import explain_kinds
from tokengraph.maps.hard import Assignment
from tokengraph.maps.soft import SoftAssignment
from tokengraph.schedule import tokens_to_keep
from tokengraph.select.base import Select, resolve


class Pooled(NamedTuple):
    """The result of :class:`TokenPooling`: fields of the coarse graph, and the map to its nodes."""

    x: Tensor
    edge_index: Tensor | None
    edge_weight: Tensor | None
    batch: Tensor
    size: Tensor
    assignment: Assignment | SoftAssignment


@explain_kinds
class TokenPooling(nn.Module):
    r"""Pools the nodes of each graph of a batch by a strategy.

    Features are reduced by the map, :math:`X' = \operatorname{diag}(S^T s)^{-1} S^T \operatorname{diag}(s) X`, and
    edges are connected by it, :math:`A' = S^T A S` without its diagonal. Gradients pass through both to features and
    edge weights, and to the parameters of strategies that have some (``FromPyG``); not through the choice.

    Args:
        select: A strategy by name, class or instance. Strategies that read attention or a grid need a model.
        keep: Nodes that each graph keeps (int), or a share of its nodes (float in (0, 1]). A graph with fewer stays as
            it is; below what one step can reach, as few as possible stay.

    Raises:
        ValueError: If ``keep`` is out of range.

    Example:
        >>> pool = TokenPooling("dpc-knn", 0.5)
        >>> x, edges, weight, batch, size, assignment = pool(torch.randn(6, 4), torch.tensor([[0, 1, 2], [1, 2, 3]]))
        >>> x.shape, assignment.lift(x).shape
        (torch.Size([3, 4]), torch.Size([6, 4]))

    Source: select, reduce and connect as in Grattarola et al., *Understanding Pooling in Graph Neural Networks*, TNNLS
    2022.
    """

    def __init__(self, select: str | type[Select] | Select, keep: int | float) -> None:
        super().__init__()
        self.select, self.keep = resolve(select), keep
        tokens_to_keep(keep, 1)  # raises for numbers out of range
        for name, module in self.select.modules.items():
            self.add_module(name, module)

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor | None = None,
        edge_weight: Tensor | None = None,
        batch: Tensor | None = None,
        *,
        size: Tensor | None = None,
        batch_size: int | None = None,
    ) -> Pooled:
        """Pools a batch of graphs.

        Args:
            x: Node features, ``[M, C]``.
            edge_index: ``[2, E]`` source to target; ``None``: strategies on edges connect nearest nodes.
            edge_weight: ``[E]``; ``None``: 1 each, so that coarse weights count edges.
            batch: Graph of each node, ``[M]`` int64, sorted; ``None``: one graph.
            size: Input nodes that each node stands for, ``[M]``, of an earlier pooling; ``None``: 1 each.
            batch_size: B, if the last graphs may have no nodes.

        Raises:
            ValueError: If shapes do not fit, or ``batch`` is not sorted.

        Cost: the strategy's, one reduction, and a sort of the edges; host synchronisations on CUDA.
        """
        check_tokens(x, dims=(2,))
        graph = self._graph(x, batch, batch_size)
        if size is not None:
            graph.size = size
        if edge_index is not None:
            graph = graph.with_edges(edge_index, edge_weight)
        counts = graph.counts
        keep = [max(tokens_to_keep(self.keep, n or 1) * bool(n), self.select.fewest(n)) for n in counts]
        assignment = assign(graph, self.select, counts, keep)
        coarse = apply(graph, assignment, reduction=self.select.reduction_at(-1))
        edges = coarse.edge_index if edge_index is not None else None
        weight = coarse.edge_weight if edge_index is not None else None
        return Pooled(coarse.x, edges, weight, coarse.batch, coarse["size"], assignment)

    def extra_repr(self) -> str:
        """Shows the strategy and the number of nodes to keep."""
        return f"{self.select}, keep={self.keep}"

    @staticmethod
    def _graph(x: Tensor, batch: Tensor | None, batch_size: int | None) -> TokenGraph:
        if batch is None:
            return TokenGraph(x=x, **batch_layout([x.size(0)], x))
        if batch.shape != (x.size(0),):
            raise ValueError(f"Expected batch of shape [M={x.size(0)}] (got {list(batch.shape)}).")
        check_sorted(batch)
        counts = torch.bincount(batch, minlength=batch_size or 1).tolist()
        if batch_size is not None and len(counts) > batch_size:
            raise ValueError(f"Expected batch below batch_size={batch_size} (got {len(counts) - 1}).")
        return TokenGraph(x=x, **batch_layout(counts, x))
