"""GTP-ViT: propagation of dropped tokens along a graph."""

from tokengraph.select.gtp.gtp import GTP

__all__ = ["GTP"]
