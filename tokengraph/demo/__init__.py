"""The demo: real tokens of a photograph become a graph, shrink, run through a stock ViT faster, and come back."""

from tokengraph.demo.run import demo

__all__ = ["demo"]
