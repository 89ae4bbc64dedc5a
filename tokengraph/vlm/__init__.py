"""Fewer visual tokens for vision-language models of transformers.

| question | files |
|---|---|
| What does a user call? | reduce (the verb), record (what it did), servers (pure functions, for servers) |
| How many tokens remain? | budget |
| Where are they in the prompt? | prompt (placeholders), columns, embeds (of a shorter prompt) |
| Where do features come from? | encode (runs the encoder), visual (its features as rows), tower (its attention) |
| How are they reduced? | rows (tile by tile) |
| What is reduced before the tower? | pixels (units of Qwen), packed_arguments (those of packed towers) |
"""

from tokengraph.vlm import selectors
from tokengraph.vlm.budget import retained_count
from tokengraph.vlm.pixels import drop_duplicates
from tokengraph.vlm.record import ImageRecord, Record
from tokengraph.vlm.reduce import ReducedInputs, reduce
from tokengraph.vlm.selectors import DPP, Duplicates, LowerResolution, PruMerge, Received, VisionZip
from tokengraph.vlm.servers import retain, retained_counts, retained_positions, retention_mask
from tokengraph.vlm.visual import Visual

__all__ = [
    "DPP",
    "Duplicates",
    "ImageRecord",
    "LowerResolution",
    "PruMerge",
    "Received",
    "Record",
    "ReducedInputs",
    "VisionZip",
    "Visual",
    "drop_duplicates",
    "reduce",
    "retain",
    "retained_count",
    "retained_counts",
    "retained_positions",
    "retention_mask",
    "selectors",
]
