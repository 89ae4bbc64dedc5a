"""Expedite: superpixel-like clustering, and reconstruction."""

from tokengraph.select.expedite.expedite import Expedite

__all__ = ["Expedite"]
