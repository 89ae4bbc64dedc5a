"""Pictures of token graphs: clusters and edges over the image, feature maps, the cost of each step.

Functions return an array, or a matplotlib figure without window or pyplot state: save it with
``figure.savefig(path)``. The first plot imports matplotlib; the extra ``viz`` installs it.
"""

from tokengraph.viz.clusters import cluster_overlay, plot_clusters
from tokengraph.viz.costs import plot_end_to_end, plot_stage_costs
from tokengraph.viz.features import feature_colors, plot_features
from tokengraph.viz.graph import plot_graph
from tokengraph.viz.image import to_rgb
from tokengraph.viz.quality import plot_quality

__all__ = [
    "cluster_overlay",
    "feature_colors",
    "plot_clusters",
    "plot_end_to_end",
    "plot_features",
    "plot_graph",
    "plot_quality",
    "plot_stage_costs",
    "to_rgb",
]
