"""DynamicSpatial for hierarchical backbones: each position takes a slow or a fast path instead of the MLP alone."""

from tokengraph.spatial.dynamic_spatial import DynamicSpatial, SpatialAttachment
from tokengraph.spatial.loss import DynamicSpatialLoss, final_map
from tokengraph.spatial.planner import plan_spatial as _plan_spatial  # noqa: F401  # registers it
from tokengraph.spatial.published import published_weights
from tokengraph.spatial.record import SpatialRecord

__all__ = [
    "DynamicSpatial",
    "DynamicSpatialLoss",
    "SpatialAttachment",
    "SpatialRecord",
    "final_map",
    "published_weights",
]
