"""The base of strategies that work on edges: a graph's own, or those of each token's nearest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokengraph.cost import Cost, distance_cost
from tokengraph.errors import check_positive
from tokengraph.maps.hard import Assignment
from tokengraph.select.base import Select
from tokengraph.select.coarsening.operator import cluster_linked, cluster_tokens, linked_by
from tokengraph.select.parts.graphs.pairs import WEIGHTS
from tokengraph.select.tokens import Tokens, clamp_budget


@dataclass(frozen=True)
class EdgeSelect(Select):
    """Clusters tokens along edges.

    In :func:`tokengraph.coarsen` these are the graph's own edges, both directions as one; a graph without edges, and
    tokens inside a model, get edges to their nearest by cosine.

    Args:
        weight: Similarity along an edge: ``"cosine"`` of the features; ``"given"``: the graph's edge weights, as
            similarities; ``"distance"``: its edge weights, as distances; ``"one"``: 1. Below 0 counts as 0.
        neighbors: Nearest tokens that a token without edges of its own gets edges to.
    """

    reads: ClassVar[str] = "nothing"
    placement: ClassVar[str] = "after"
    weight: str = "cosine"
    neighbors: int = 8

    def __post_init__(self) -> None:
        if self.weight not in WEIGHTS:
            raise ValueError(f"Expected weight to be one of {', '.join(WEIGHTS)} (got {self.weight!r}).")
        check_positive(neighbors=self.neighbors)

    @property
    def method(self) -> str:
        """The name of the method; see :mod:`tokengraph.select.coarsening.methods`."""
        raise NotImplementedError

    @property
    def eigenvectors(self) -> int:
        """Eigenvectors that the method computes; 0: as many as clusters, or none."""
        return 0

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> Assignment:
        """Maps the tokens to clusters; see :class:`tokengraph.Select`."""
        x, mask = tokens.x, tokens.mask
        keep = clamp_budget(budget, x, mask)
        if x.size(0) == 0 or x.size(1) == 0 or (not isinstance(keep, list) and keep == x.size(1)):
            return Assignment.from_dense(torch.arange(x.size(1), device=x.device).expand(x.shape[:2]), keep, mask=mask)
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            cluster = self._on_own_edges(tokens, keep) if tokens.edges is not None else self._on_nearest(tokens, keep)
        return Assignment.from_dense(cluster, keep, mask=mask)

    def _on_nearest(self, tokens: Tokens, keep: int | list[int]) -> Tensor:
        budgets = keep if isinstance(keep, list) else None
        one, size = -1 if isinstance(keep, list) else keep, None if tokens.size is None else tokens.size.detach()
        weight = "one" if self.weight == "one" else "cosine"
        return cluster_tokens(
            tokens.x.detach(), size, tokens.mask, one, budgets, self.method, weight, self.neighbors, self.eigenvectors
        )

    def _on_own_edges(self, tokens: Tokens, keep: int | list[int]) -> Tensor:
        assert tokens.edges is not None and tokens.mask is None
        images, width = tokens.x.shape[:2]
        size = None if tokens.size is None else tokens.size.detach().flatten()
        ptr = torch.arange(images + 1, device=tokens.x.device) * width
        linked = linked_by(tokens.edges, tokens.x.flatten(0, 1), size, ptr, self.weight)
        budgets = keep if isinstance(keep, list) else [keep] * images
        return cluster_linked(linked, budgets, self.method, self.eigenvectors, self.neighbors).view(images, width)

    def cost(self, num_tokens: int, keep: int, channels: int, head_width: int = 64) -> Cost:
        """Counts all cosines, from which the nearest are taken; the steps on edges are not counted."""
        return distance_cost(num_tokens, num_tokens, channels)
