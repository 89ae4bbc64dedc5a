"""Graph coarsening as strategies: they work on a graph's own edges, or on the kNN graph of tokens inside a model."""

from tokengraph.select.coarsening.farthest_points import FarthestPoints
from tokengraph.select.coarsening.heavy_edges import HeavyEdges
from tokengraph.select.coarsening.local_variation import LocalVariation
from tokengraph.select.coarsening.modularity import Modularity
from tokengraph.select.coarsening.spectral import SpectralClustering

__all__ = ["FarthestPoints", "HeavyEdges", "LocalVariation", "Modularity", "SpectralClustering"]
