"""The demo: makes a graph of a photograph's tokens, coarsens it, and runs a stock ViT faster with strategies."""

from tokengraph.demo.run import demo

__all__ = ["demo"]
