"""Pictures of token graphs: clusters and edges over the image, feature maps, what each step costs.

Everything returns an array or a matplotlib figure that no window and no pyplot state belongs to: save it with
``figure.savefig(path)``. Matplotlib is imported at the first plot; the extra ``viz`` brings it.
"""

from tokengraph.viz.clusters import cluster_overlay, plot_clusters
from tokengraph.viz.costs import plot_end_to_end, plot_stage_costs
from tokengraph.viz.features import feature_colors, plot_features
from tokengraph.viz.graph import plot_graph
from tokengraph.viz.image import to_rgb

__all__ = [
    "cluster_overlay",
    "feature_colors",
    "plot_clusters",
    "plot_end_to_end",
    "plot_features",
    "plot_graph",
    "plot_stage_costs",
    "to_rgb",
]
