"""Tokens as a PyG graph, and coarsening without a model."""

import torch
from torch_geometric.data.data import DataEdgeAttr, DataTensorAttr
from torch_geometric.data.storage import GlobalStorage

from tokengraph.graph.token_graph import TokenGraph

# torch.load(weights_only=True), by which PyG loads data sets, accepts only registered classes.
torch.serialization.add_safe_globals([TokenGraph, DataEdgeAttr, DataTensorAttr, GlobalStorage])

__all__ = ["TokenGraph"]
