"""Tokens as a PyG graph, and coarsening outside of models."""

from tokengraph.graph.token_graph import TokenGraph

__all__ = ["TokenGraph"]
