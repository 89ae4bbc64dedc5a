"""Strategies for visual tokens on their way into a language model."""

from tokengraph.vlm.selectors.dpp import DPP, dpp
from tokengraph.vlm.selectors.duplicates import Duplicates, least_duplicated
from tokengraph.vlm.selectors.lower_resolution import LowerResolution
from tokengraph.vlm.selectors.tower_output import PruMerge, Received, VisionZip

__all__ = ["DPP", "Duplicates", "LowerResolution", "PruMerge", "Received", "VisionZip", "dpp", "least_duplicated"]
