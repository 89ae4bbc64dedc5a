"""Edges between tokens: k nearest neighbours, the patch grid, windows of nearest patches."""

from tokengraph.edges.grid import grid_graph, grid_positions
from tokengraph.edges.knn import knn_graph, knn_neighbors
from tokengraph.edges.local import local_knn_graph
from tokengraph.edges.window import window_graph
from tokengraph.optional import Backend, backends

__all__ = [
    "Backend",
    "backends",
    "grid_graph",
    "grid_positions",
    "knn_graph",
    "knn_neighbors",
    "local_knn_graph",
    "window_graph",
]
