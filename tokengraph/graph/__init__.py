"""Tokens as a PyG graph, and coarsening outside of models."""

import torch
from torch_geometric.data.data import DataEdgeAttr, DataTensorAttr
from torch_geometric.data.storage import GlobalStorage

from tokengraph.graph.token_graph import TokenGraph

# torch.load(weights_only=True), as PyG loads data sets, takes the classes that are named here.
torch.serialization.add_safe_globals([TokenGraph, DataEdgeAttr, DataTensorAttr, GlobalStorage])

__all__ = ["TokenGraph"]
