"""tokengraph: vision-transformer tokens as a graph, and token reduction as graph coarsening."""

import warnings as _warnings
from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING

with _warnings.catch_warnings():
    # PyTorch Geometric warns at import that it ignores torch-cluster, but this package calls it directly.
    _warnings.filterwarnings("ignore", message=".*torch[-_]cluster.*")
    _warnings.filterwarnings("ignore", message=".*torch.jit.script.*")
    import torch_geometric.data as _data  # noqa: F401

from tokengraph import models, schedule
from tokengraph.attach.attach import Attachment, attach, detach
from tokengraph.attach.compiled import compile_blocks
from tokengraph.attach.ragged import ragged_batches
from tokengraph.datasets.dataset import TokenGraphDataset
from tokengraph.edges import backends, grid_graph, knn_graph, knn_neighbors, local_knn_graph, window_graph
from tokengraph.evaluate.evaluate import evaluate
from tokengraph.evaluate.fidelity import Fidelity, fidelity
from tokengraph.evaluate.realign import Realignment, realign
from tokengraph.flat.memory import set_memory_budget
from tokengraph.graph.coarsen import apply as contract
from tokengraph.graph.coarsen import coarsen, hierarchy
from tokengraph.graph.partition import communities, k_mis, threshold_components
from tokengraph.graph.pooling import TokenPooling
from tokengraph.graph.quality import Quality, quality
from tokengraph.graph.token_graph import TokenGraph
from tokengraph.maps.hard import Assignment
from tokengraph.maps.soft import SoftAssignment
from tokengraph.moved import find_moved_modules as _find_moved_modules
from tokengraph.packed.planner import PackedAttachment as _PackedAttachment  # noqa: F401  # registers its planner
from tokengraph.planning import Plan, plan
from tokengraph.select import Select, registry, resolve
from tokengraph.select.algm import ALGM, algm_global, algm_local
from tokengraph.select.around import Around
from tokengraph.select.atc import ATC, atc
from tokengraph.select.ats import ATS, ats
from tokengraph.select.avit import AViT, halt
from tokengraph.select.coarsening import FarthestPoints, HeavyEdges, LocalVariation, Modularity, SpectralClustering
from tokengraph.select.coarsening.farthest_points import farthest_points
from tokengraph.select.compose import compose
from tokengraph.select.cubist_merge import CubistMerge, cubist_merge
from tokengraph.select.diffrate import DiffRate, diffrate
from tokengraph.select.dtem import DTEM
from tokengraph.select.dynamicvit import DynamicViT
from tokengraph.select.evovit import EvoViT, slow_fast_stage
from tokengraph.select.expedite.cluster import token_clustering
from tokengraph.select.expedite.expedite import Expedite, expedite
from tokengraph.select.expedite.reconstruct import token_reconstruction
from tokengraph.select.fastv import fastv
from tokengraph.select.from_matrix import FromMatrix
from tokengraph.select.from_pyg import FromPyG
from tokengraph.select.g2tm import G2TM, connected_components
from tokengraph.select.gated import AdaViT, SViT, gate
from tokengraph.select.grid_pool import GridPool, grid_pool
from tokengraph.select.grid_tome import GridToMe, grid_destinations
from tokengraph.select.gtp.gtp import GTP, gtp
from tokengraph.select.idlevit import IdleViT
from tokengraph.select.k_medoids import KMedoids, k_medoids
from tokengraph.select.mctf import MCTF, mctf
from tokengraph.select.migration.migration import TokenMigration
from tokengraph.select.mpm import MPM, mpm
from tokengraph.select.parts.graphs.propagation import PropagationGraph, gtp_graph, propagation_graph
from tokengraph.select.peaks.ailurus import AiluRus, ailurus
from tokengraph.select.peaks.dpc_knn import DPCKNN, dpc_knn
from tokengraph.select.pitome import PiToMe, pitome
from tokengraph.select.ppt import PPT, ppt
from tokengraph.select.prumerge import prumerge
from tokengraph.select.prune_merge import prune_merge_matrices, segment_matrices
from tokengraph.select.random import Random
from tokengraph.select.staged import Staged
from tokengraph.select.tofu import ToFu, tofu
from tokengraph.select.token_transforming import TokenTransforming, token_transforming
from tokengraph.select.toma import ToMA, facility_location, toma
from tokengraph.select.tome import ToMe, tome
from tokengraph.select.topk import TopK, topk
from tokengraph.select.tps import TPS, tps
from tokengraph.select.visionzip import visionzip
from tokengraph.select.zero_tprune import ZeroTPrune, zero_tprune
from tokengraph.spatial import DynamicSpatial
from tokengraph.windows import WindowCoarsening

__version__ = "0.2.0"

_find_moved_modules()

if _TYPE_CHECKING:
    from tokengraph import vlm


def __getattr__(name: str) -> object:
    if name == "vlm":  # on first use: it is about models of transformers, which need not be installed
        return _import_module("tokengraph.vlm")
    raise AttributeError(f"module 'tokengraph' has no attribute {name!r}")


__all__ = [
    "ALGM",
    "ATC",
    "ATS",
    "AiluRus",
    "Around",
    "Assignment",
    "Attachment",
    "CubistMerge",
    "DPCKNN",
    "DTEM",
    "DiffRate",
    "DynamicSpatial",
    "DynamicViT",
    "Expedite",
    "FarthestPoints",
    "Fidelity",
    "FromMatrix",
    "FromPyG",
    "G2TM",
    "GTP",
    "GridPool",
    "GridToMe",
    "HeavyEdges",
    "KMedoids",
    "LocalVariation",
    "MCTF",
    "MPM",
    "Modularity",
    "PPT",
    "PiToMe",
    "Plan",
    "PropagationGraph",
    "Quality",
    "Random",
    "Realignment",
    "Select",
    "SoftAssignment",
    "SpectralClustering",
    "Staged",
    "TPS",
    "ToFu",
    "ToMA",
    "ToMe",
    "TokenGraph",
    "TokenGraphDataset",
    "TokenMigration",
    "TokenPooling",
    "TokenTransforming",
    "TopK",
    "WindowCoarsening",
    "ZeroTPrune",
    "AdaViT",
    "IdleViT",
    "SViT",
    "gate",
    "AViT",
    "EvoViT",
    "halt",
    "slow_fast_stage",
    "fastv",
    "prumerge",
    "prune_merge_matrices",
    "segment_matrices",
    "visionzip",
    "ailurus",
    "algm_global",
    "algm_local",
    "atc",
    "ats",
    "attach",
    "backends",
    "coarsen",
    "communities",
    "compile_blocks",
    "compose",
    "connected_components",
    "contract",
    "cubist_merge",
    "detach",
    "diffrate",
    "dpc_knn",
    "evaluate",
    "expedite",
    "facility_location",
    "farthest_points",
    "fidelity",
    "grid_destinations",
    "grid_graph",
    "grid_pool",
    "gtp",
    "gtp_graph",
    "hierarchy",
    "k_medoids",
    "k_mis",
    "knn_graph",
    "knn_neighbors",
    "local_knn_graph",
    "mctf",
    "models",
    "mpm",
    "pitome",
    "plan",
    "ppt",
    "propagation_graph",
    "quality",
    "ragged_batches",
    "realign",
    "registry",
    "resolve",
    "schedule",
    "set_memory_budget",
    "threshold_components",
    "tofu",
    "token_clustering",
    "token_reconstruction",
    "token_transforming",
    "toma",
    "tome",
    "topk",
    "tps",
    "vlm",
    "window_graph",
    "zero_tprune",
]
