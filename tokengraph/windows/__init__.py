"""Backbones with attention windows: every window is a small graph that is coarsened by itself.

| question | files |
|---|---|
| Which models? | find, sam and swin and swin2 (of timm), layers (of transformers) |
| How is it attached? | planner, plan (and its site) |
| How is a window coarsened? | coarsening (``WindowCoarsening``), merge (ToMe), clusters (Expedite, CubistMerge) |
| What runs in a block? | block, grid (cuts and joins windows), position (relative positions, shift masks) |
| What is recorded? | record |
"""

from tokengraph.windows.clusters import WindowClusters, cluster_windows
from tokengraph.windows.coarsening import WindowAttachment, WindowCoarsening
from tokengraph.windows.planner import plan_windows as _plan_windows  # noqa: F401  # registers it
from tokengraph.windows.record import WindowRecord

__all__ = ["WindowAttachment", "WindowClusters", "WindowCoarsening", "WindowRecord", "cluster_windows"]
