"""A selection of PyTorch Geometric, or of torch-geometric-pool, as a strategy."""

from __future__ import annotations

import copy
import inspect
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokengraph.maps.hard import Assignment
from tokengraph.maps.soft import SoftAssignment
from tokengraph.select.base import Select
from tokengraph.select.parts.choices.selection import joined, map_of_selection, read_selection
from tokengraph.select.parts.graphs.pairs import nearest_pairs
from tokengraph.select.tokens import Tokens, clamp_budget, valid_counts

ALIASES = {"edge_attr": "edge_weight", "attr": "edge_weight"}


class FromPyG(Select):
    """A strategy that lets a PyG ``Select`` module choose.

    It takes a ``torch_geometric.nn.pool.select.Select`` such as ``SelectTopK(channels)``, a ``TopKPooling`` or
    ``SAGPooling`` layer, whose score and selection it uses, a ``Select`` of torch-geometric-pool, or any module that
    returns an object with ``node_index``, ``cluster_index`` and ``num_nodes``, or with a matrix ``s`` of nodes and
    clusters. ``forward`` gets by name those of ``x``, ``edge_index``, ``edge_weight``, ``batch`` and ``num_nodes`` that
    it has; edges are the graph's own, or those of nearest tokens.

    If the module returns a ``weight`` of each node, as top-k selections do, features are multiplied by it, through
    which its parameters get gradients. Nodes that it leaves out are dropped.

    Args:
        select: The module. It stays the same object, so that its parameters train.
        gate: False ignores a hard selection's weights.
        neighbors: Nearest tokens by cosine that each token without edges of its own gets edges to, if the module reads
            edges.

    Note:
        The budget becomes the module's ``ratio`` where it has one, image by image where budgets differ. A module
        without ``ratio``, or with a ``min_score``, decides by itself how many clusters there are: at most as many as
        tokens, and the budget only says when it acts.

    Raises:
        TypeError: If ``select`` is no module.

    Example:
        >>> from torch_geometric.nn.pool.select import SelectTopK
        >>> select = FromPyG(SelectTopK(8))
        >>> select(Tokens(torch.randn(2, 16, 8)), 4).num_clusters
        8

    Source: the interface of ``torch_geometric.nn.pool.select``; Grattarola et al., *Understanding Pooling in Graph
    Neural Networks*, TNNLS 2022. Top-k scores: Gao & Ji, ICML 2019; SAG: Lee, Lee & Kang, ICML 2019.
    """

    reads: ClassVar[str] = "nothing"
    placement: ClassVar[str] = "after"

    def __init__(self, select: nn.Module, *, gate: bool = True, neighbors: int = 8) -> None:
        if not isinstance(select, nn.Module):
            raise TypeError(f"Expected a Select module of PyTorch Geometric (got {type(select).__name__}).")
        self.select, self.gate, self.neighbors = select, gate, neighbors

    def __repr__(self) -> str:
        return f"FromPyG({self.select})"

    @property
    def chooser(self) -> nn.Module:
        """The module that selects: the layer's own one in a pooling layer."""
        inner = getattr(self.select, "select", None)
        return inner if isinstance(inner, nn.Module) else self.select

    @property
    def ragged(self) -> bool:  # type: ignore[override]
        """Whether the inner module decides how many clusters there are."""
        return not self.counts

    @property
    def counts(self) -> bool:
        """True if the module keeps as many nodes as it is told."""
        return hasattr(self.chooser, "ratio") and getattr(self.chooser, "min_score", None) is None

    @property
    def merges(self) -> bool:  # type: ignore[override]
        """False: selections drop nodes, and attention does not weigh by size. Maps say themselves what they lose."""
        return False

    @property
    def learns(self) -> bool:  # type: ignore[override]
        """True if the module has parameters."""
        return any(True for _ in self.select.parameters())

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The module to train; see :class:`tokengraph.Select`."""
        return {"pyg_select": self.select} if self.learns else {}

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> Assignment | SoftAssignment:
        """Maps the tokens to clusters; see :class:`tokengraph.Select`."""
        x, mask = tokens.x, tokens.mask
        keep, each = clamp_budget(budget, x, mask), valid_counts(x, mask)
        flat = x.flatten(0, 1) if mask is None else x[mask]
        return self.on_flat(flat, each, keep if isinstance(keep, list) else [keep] * len(each), tokens.edges)

    def on_flat(
        self, x: Tensor, counts: list[int], budgets: list[int], edges: tuple[Tensor, Tensor | None] | None
    ) -> Assignment | SoftAssignment:
        """Maps flat tokens ``[M, C]`` of images with ``counts`` tokens each to at most ``budgets`` clusters each."""
        own = next(self.select.parameters(), None)
        asked = x if own is None else x.to(own.dtype)
        ptr = torch.tensor([0, *counts], device=x.device).cumsum(0)
        image = torch.repeat_interleave(torch.arange(len(counts), device=x.device), ptr.diff())
        if self._reads_edges() and edges is None:
            pairs = nearest_pairs(x.detach(), ptr, self.neighbors)
            ends = torch.stack([torch.cat([pairs.a, pairs.b]), torch.cat([pairs.b, pairs.a])])
            edges = ends, pairs.weight.repeat(2).to(asked.dtype)
        if not self.counts or len(set(budgets)) < 2:
            chosen = read_selection(self._ask(asked, edges, image, budgets[0] if budgets else 1), image)
        else:  # one ratio for each image
            parts, clusters = [], 0
            for start, count, keep in zip(ptr.tolist(), counts, budgets, strict=False):
                if count:
                    rows = slice(start, start + count)
                    output = self._ask(asked[rows], _edges_of(edges, start, start + count), image[rows] * 0, keep)
                    part = read_selection(output, image[rows] * 0)
                    parts.append(part.moved(start, clusters))
                    clusters += part.clusters
            chosen = joined(parts)
        return map_of_selection(chosen, image, ptr, self.gate)

    def _reads_edges(self) -> bool:
        wanted = inspect.signature(self.chooser.forward).parameters
        return self._scores or any(ALIASES.get(name, name).startswith("edge_") for name in wanted)

    @property
    def _scores(self) -> bool:
        """True for a SAGPooling, which scores nodes by a GNN before it selects."""
        return self.chooser is not self.select and hasattr(self.select, "gnn")

    def _ask(self, x: Tensor, edges: tuple[Tensor, Tensor | None] | None, batch: Tensor, keep: int) -> Any:
        """Returns the module's output for these tokens."""
        chooser = self.chooser
        known: dict[str, Any] = {"x": x, "batch": batch, "num_nodes": x.size(0)}
        if edges is not None:
            known |= {"edge_index": edges[0], "edge_weight": edges[1]}
            if self._scores:
                known["x"] = self.select.gnn(x, edges[0])  # type: ignore[operator]
        if self.counts:
            chooser = copy.copy(chooser)  # shares the parameters; the module itself keeps its own ratio
            chooser.ratio = int(keep)  # type: ignore[assignment]
        given = inspect.signature(chooser.forward).parameters
        return chooser(**{name: known[ALIASES.get(name, name)] for name in given if ALIASES.get(name, name) in known})


def _edges_of(edges: tuple[Tensor, Tensor | None] | None, start: int, stop: int) -> tuple[Tensor, Tensor | None] | None:
    """Returns the edges among one image's tokens, in its own ids."""
    if edges is None:
        return None
    index, weight = edges
    inside = ((index >= start) & (index < stop)).all(dim=0)
    return index[:, inside] - start, None if weight is None else weight[inside]
