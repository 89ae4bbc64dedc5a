"""tokengraph: vision-transformer tokens as a graph, and token reduction as graph coarsening."""

import warnings as _warnings

with _warnings.catch_warnings():
    # PyTorch Geometric warns at import that it ignores torch-cluster, but this package calls it directly.
    _warnings.filterwarnings("ignore", message=".*torch[-_]cluster.*")
    _warnings.filterwarnings("ignore", message=".*torch.jit.script.*")
    import torch_geometric.data as _data  # noqa: F401

from tokengraph import models, schedule
from tokengraph.attach.attach import Attachment, attach, detach
from tokengraph.edges import backends, grid_graph, knn_graph, knn_neighbors, window_graph
from tokengraph.evaluate.evaluate import evaluate
from tokengraph.evaluate.fidelity import Fidelity, fidelity
from tokengraph.graph.coarsen import coarsen, hierarchy
from tokengraph.graph.token_graph import TokenGraph
from tokengraph.maps.hard import Assignment
from tokengraph.maps.soft import SoftAssignment
from tokengraph.moved import find_moved_modules as _find_moved_modules
from tokengraph.planning import Plan, plan
from tokengraph.select import Select, registry, resolve
from tokengraph.select.dynamicvit import DynamicViT
from tokengraph.select.expedite.cluster import token_clustering
from tokengraph.select.expedite.expedite import Expedite, expedite
from tokengraph.select.expedite.reconstruct import token_reconstruction
from tokengraph.select.grid_pool import GridPool, grid_pool
from tokengraph.select.gtp.gtp import GTP, gtp
from tokengraph.select.migration.migration import TokenMigration
from tokengraph.select.parts.graphs.propagation import PropagationGraph, gtp_graph, propagation_graph
from tokengraph.select.peaks.ailurus import AiluRus, ailurus
from tokengraph.select.peaks.dpc_knn import DPCKNN, dpc_knn
from tokengraph.select.pitome import PiToMe, pitome
from tokengraph.select.random import Random
from tokengraph.select.staged import Staged
from tokengraph.select.tome import ToMe, tome
from tokengraph.select.topk import TopK, topk
from tokengraph.spatial import DynamicSpatial
from tokengraph.windows import WindowCoarsening

__version__ = "0.1.0"

_find_moved_modules()

__all__ = [
    "AiluRus",
    "Assignment",
    "Attachment",
    "DPCKNN",
    "DynamicSpatial",
    "DynamicViT",
    "Expedite",
    "Fidelity",
    "GTP",
    "GridPool",
    "PiToMe",
    "Plan",
    "PropagationGraph",
    "Random",
    "Select",
    "SoftAssignment",
    "Staged",
    "ToMe",
    "TokenGraph",
    "TokenMigration",
    "TopK",
    "WindowCoarsening",
    "ailurus",
    "attach",
    "backends",
    "coarsen",
    "detach",
    "dpc_knn",
    "evaluate",
    "expedite",
    "fidelity",
    "grid_graph",
    "grid_pool",
    "gtp",
    "gtp_graph",
    "hierarchy",
    "knn_graph",
    "knn_neighbors",
    "models",
    "pitome",
    "plan",
    "propagation_graph",
    "registry",
    "resolve",
    "schedule",
    "token_clustering",
    "token_reconstruction",
    "tome",
    "topk",
    "window_graph",
]
