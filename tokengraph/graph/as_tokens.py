"""Nodes of a token graph as the input of a strategy."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokengraph.edges.grid import Grid
from tokengraph.graph.token_graph import TokenGraph
from tokengraph.select.tokens import Tokens


def tokens_of(graph: TokenGraph, rows: Tensor, images: int, grid: Grid | None) -> Tokens:
    """Returns the nodes ``rows`` of a graph, those of ``images`` images of one size and grid, with edges among them."""
    whole = rows.numel() == graph.x.size(0)
    x, size = (f if whole else f[rows] for f in (graph.x, graph.size))
    tokens = Tokens(x.view(images, -1, x.size(1)), size.view(images, -1), grid, full=False)
    if grid is not None:
        tokens.full = math.prod(grid) == tokens.x.size(1)
        tokens.locate = lambda: graph.pos[rows].view(images, -1, graph.pos.size(1))
    if "edge_index" in graph and graph.edge_index is not None:
        tokens.edges = (graph.edge_index, graph.edge_weight) if whole else _edges_among(graph, rows)
    return tokens


def _edges_among(graph: TokenGraph, rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """Returns the edges that start and end at the given nodes, with ids that count these nodes."""
    place = rows.new_full((graph.x.size(0),), -1)
    place[rows] = torch.arange(rows.numel(), device=rows.device)
    ends = place[graph.edge_index]
    inside = (ends >= 0).all(dim=0)
    return ends[:, inside], None if graph.edge_weight is None else graph.edge_weight[inside]
