"""Fewer visual tokens for vision-language models of transformers."""

from tokengraph.vlm.budget import retained_count
from tokengraph.vlm.record import ImageRecord, Record
from tokengraph.vlm.reduce import ReducedInputs, reduce
from tokengraph.vlm.visual import Visual

__all__ = ["ImageRecord", "Record", "ReducedInputs", "Visual", "reduce", "retained_count"]
