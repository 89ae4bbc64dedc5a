"""tokengraph: vision-transformer tokens as a graph, and token reduction as graph coarsening."""

import warnings as _warnings

with _warnings.catch_warnings():
    # PyTorch Geometric warns at import that it ignores torch-cluster, but this package calls it directly.
    _warnings.filterwarnings("ignore", message=".*torch[-_]cluster.*")
    _warnings.filterwarnings("ignore", message=".*torch.jit.script.*")
    import torch_geometric.data as _data  # noqa: F401

from tokengraph import models, schedule
from tokengraph.attach.attach import Attachment, attach, detach
from tokengraph.datasets.dataset import TokenGraphDataset
from tokengraph.edges import backends, grid_graph, knn_graph, knn_neighbors, window_graph
from tokengraph.evaluate.evaluate import evaluate
from tokengraph.evaluate.fidelity import Fidelity, fidelity
from tokengraph.graph.coarsen import coarsen, hierarchy
from tokengraph.graph.token_graph import TokenGraph
from tokengraph.maps.hard import Assignment
from tokengraph.maps.soft import SoftAssignment
from tokengraph.moved import find_moved_modules as _find_moved_modules
from tokengraph.select import Select, registry, resolve
from tokengraph.select.algm import ALGM, algm_global, algm_local
from tokengraph.select.atc import ATC, atc
from tokengraph.select.cubist_merge import CubistMerge, cubist_merge
from tokengraph.select.dynamicvit import DynamicViT
from tokengraph.select.expedite.cluster import token_clustering
from tokengraph.select.expedite.expedite import Expedite, expedite
from tokengraph.select.expedite.reconstruct import token_reconstruction
from tokengraph.select.g2tm import G2TM, connected_components
from tokengraph.select.grid_pool import GridPool, grid_pool
from tokengraph.select.gtp.gtp import GTP, gtp
from tokengraph.select.k_medoids import KMedoids, k_medoids
from tokengraph.select.mctf import MCTF, mctf
from tokengraph.select.migration.migration import TokenMigration
from tokengraph.select.mpm import MPM, mpm
from tokengraph.select.parts.graphs.propagation import PropagationGraph, gtp_graph, propagation_graph
from tokengraph.select.peaks.ailurus import AiluRus, ailurus
from tokengraph.select.peaks.dpc_knn import DPCKNN, dpc_knn
from tokengraph.select.pitome import PiToMe, pitome
from tokengraph.select.random import Random
from tokengraph.select.tofu import ToFu, tofu
from tokengraph.select.token_transforming import TokenTransforming, token_transforming
from tokengraph.select.tome import ToMe, tome
from tokengraph.select.topk import TopK, topk
from tokengraph.spatial import DynamicSpatial
from tokengraph.windows import WindowCoarsening

__version__ = "0.1.0"

_find_moved_modules()

__all__ = [
    "ALGM",
    "ATC",
    "AiluRus",
    "Assignment",
    "Attachment",
    "CubistMerge",
    "DPCKNN",
    "DynamicSpatial",
    "DynamicViT",
    "Expedite",
    "Fidelity",
    "G2TM",
    "GTP",
    "GridPool",
    "KMedoids",
    "MCTF",
    "MPM",
    "PiToMe",
    "PropagationGraph",
    "Random",
    "Select",
    "SoftAssignment",
    "ToFu",
    "ToMe",
    "TokenGraph",
    "TokenGraphDataset",
    "TokenMigration",
    "TokenTransforming",
    "TopK",
    "WindowCoarsening",
    "ailurus",
    "algm_global",
    "algm_local",
    "atc",
    "attach",
    "backends",
    "coarsen",
    "connected_components",
    "cubist_merge",
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
    "k_medoids",
    "knn_graph",
    "knn_neighbors",
    "mctf",
    "models",
    "mpm",
    "pitome",
    "propagation_graph",
    "registry",
    "resolve",
    "schedule",
    "token_clustering",
    "token_reconstruction",
    "token_transforming",
    "tofu",
    "tome",
    "topk",
    "window_graph",
]
