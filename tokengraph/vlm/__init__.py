"""Fewer visual tokens for vision-language models of transformers."""

from tokengraph.vlm.budget import retained_count
from tokengraph.vlm.record import ImageRecord, Record
from tokengraph.vlm.reduce import ReducedInputs, reduce

__all__ = ["ImageRecord", "Record", "ReducedInputs", "reduce", "retained_count"]
