"""Backbones with attention windows: every window is a small graph that is coarsened by itself."""

from tokengraph.windows.clusters import WindowClusters, cluster_windows
from tokengraph.windows.coarsening import WindowAttachment, WindowCoarsening
from tokengraph.windows.planner import plan_windows as _plan_windows  # noqa: F401  # registers it
from tokengraph.windows.record import WindowRecord

__all__ = ["WindowAttachment", "WindowClusters", "WindowCoarsening", "WindowRecord", "cluster_windows"]
