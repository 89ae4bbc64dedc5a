"""The features that a vision-language model's encoder hands to its language model, as flat rows."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tokengraph.vlm.tower import Watched

HEAVY = ("last_hidden_state", "hidden_states", "attentions")  # the language model reads none of these


@dataclass(eq=False)
class Visual:
    """The visual features of one kind of input, laid out as one row for each placeholder of the prompts.

    Args:
        modality: ``"image"`` or ``"video"``.
        rows: All features, ``[M, C]``, in the order of the placeholders.
        counts: Rows of each image, or of each tile where the model does not tell which tiles are an image's.
        deep: DeepStack features, one ``[M, C]`` for each language layer that adds them; empty in most models.
        output: The encoder's own output, of which :meth:`with_rows` makes a shorter one.
        watched: The tower's attention, for strategies that read it; ``None``: not watched.
        entries: How many of ``counts`` each entry of the encoder's output has; empty: one each.
    """

    modality: str
    rows: Tensor
    counts: list[int]
    deep: list[Tensor] = field(default_factory=list)
    output: Any = None
    watched: Watched | None = None
    entries: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, modality: str, output: Any) -> Visual:
        """Reads an encoder's output: an object with ``pooler_output``, or the features themselves in old versions.

        Raises:
            ValueError: If the features have no form that this module knows.
        """
        deep = getattr(output, "deepstack_features", None) or ()
        name = _field(output, deep)
        features = output if name is None else getattr(output, name)
        if features is output and isinstance(output, tuple) and len(output) == 2 and isinstance(output[1], list):
            features, deep = output  # Qwen3-VL before the features had a class
        if isinstance(features, Tensor) and features.dim() in (2, 3):
            tiles = features if features.dim() == 3 else features[None]
            counts = [tiles.size(1)] * tiles.size(0)
            rows = tiles.flatten(0, 1)
        elif isinstance(features, Sequence) and features and all(isinstance(f, Tensor) for f in features):
            parts = [f.flatten(0, -2) for f in features]
            counts, rows = [p.size(0) for p in parts], torch.cat(parts)
        else:
            raise ValueError(
                f"Expected visual features as a tensor [tiles, n, C] or a list of [n, C] (got "
                f"{type(features).__name__}). This model's features cannot be reduced here."
            )
        return cls(modality, rows, counts, [_flat(layer, rows.size(0)) for layer in deep], output)

    def split(self, each: int) -> None:
        """Counts every ``each`` rows of an entry as an image of their own, in entries that this divides."""
        entries = [[each] * (n // each) if each and n % each == 0 else [n] for n in self.counts]
        self.counts = [n for entry in entries for n in entry]
        self.entries = [len(entry) for entry in entries]

    def with_rows(self, rows: Tensor, counts: list[int], deep: list[Tensor]) -> Any:
        """Makes an encoder output of fewer rows, in the form of the model's own.

        Args:
            rows: The features that remain, ``[K, C]``.
            counts: Rows of each image or tile.
            deep: DeepStack rows ``[K, C]`` of each layer.

        Returns:
            A new object of the output's class, without the encoder's hidden states.
        """
        if self.entries:
            parts = iter(counts)
            counts = [sum(next(parts) for _ in range(n)) for n in self.entries]
        output = copy.copy(self.output)
        name = _field(output, deep)
        assert name is not None
        for heavy in HEAVY:
            if getattr(output, heavy, None) is not None:
                setattr(output, heavy, None)
        setattr(output, name, _shaped(rows, counts, getattr(self.output, name)))
        if deep:
            output.deepstack_features = [
                _shaped(layer, counts, old) for layer, old in zip(deep, self.output.deepstack_features, strict=True)
            ]
        return output


def _field(output: Any, deep: Sequence[Any]) -> str | None:
    """The part of an encoder's output that the language model reads; ``None``: the output is the features.

    Raises:
        ValueError: If it reads DeepStack features alone.
    """
    if not hasattr(output, "pooler_output"):
        return None
    if output.pooler_output is None and deep:
        raise ValueError(
            "Expected features at the placeholders themselves (got DeepStack features for language layers alone, as "
            "in Granite 4 Vision). Reduce inside the vision tower with tokengraph.attach."
        )
    return "last_hidden_state" if output.pooler_output is None else "pooler_output"


def _flat(layer: Any, rows: int) -> Tensor:
    """One layer's DeepStack features as rows ``[M, C]``."""
    parts = layer if isinstance(layer, Sequence) else [layer]
    if not all(isinstance(part, Tensor) for part in parts):
        raise ValueError(
            f"Expected DeepStack features as tensors (got {type(layer).__name__} of "
            f"{', '.join(sorted({type(p).__name__ for p in parts}))}). This model's features cannot be reduced here."
        )
    flat = torch.cat([part.flatten(0, -2) for part in parts])
    if flat.size(0) != rows:
        raise ValueError(f"Expected DeepStack features of M={rows} rows (got {flat.size(0)}).")
    return flat


def _shaped(rows: Tensor, counts: list[int], like: Any) -> Any:
    """Rows in the form of ``like``: a tensor of tiles, or a list or tuple with one tensor for each image."""
    if not isinstance(like, Tensor):
        return type(like)(rows.split(counts))
    if like.dim() == 2:
        return rows
    equal = len(set(counts)) == 1
    return rows.view(len(counts), counts[0], -1) if equal else rows[None]  # models read the rows alone
