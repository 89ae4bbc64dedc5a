"""Loading weights by name, with a report of what did not match."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

WRAPPERS = ("model", "state_dict", "model_ema", "teacher")  # what training scripts put around a state dict


@dataclass(frozen=True)
class LoadReport:
    """What became of each name. Printing it says so in words.

    Args:
        loaded: Names that were loaded.
        missing: Names of the model that the checkpoint lacks; they keep their values.
        unexpected: Names of the checkpoint that the model lacks.
        mismatched: Names with another shape: ``(name, model's shape, checkpoint's shape)``; they keep their values.
    """

    loaded: list[str]
    missing: list[str]
    unexpected: list[str]
    mismatched: list[tuple[str, list[int], list[int]]]

    @property
    def complete(self) -> bool:
        """Whether every name was loaded, and nothing was left over."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        lines = [f"loaded {len(self.loaded)} tensors"]
        lines += [f"missing in the checkpoint: {', '.join(self.missing)}"] if self.missing else []
        lines += [f"unknown to the model: {', '.join(self.unexpected)}"] if self.unexpected else []
        lines += [f"another shape: {name} is {ours}, checkpoint has {theirs}" for name, ours, theirs in self.mismatched]
        return "\n".join(lines)


def load_checkpoint(model: nn.Module, source: str | PathLike[str] | Mapping[str, Any]) -> LoadReport:
    """Loads into a model what a checkpoint has under the model's names, and says what did not match.

    Published checkpoints of DynamicViT load into a timm model with :class:`~tokengraph.DynamicViT` attached: their
    names are timm's, and ``score_predictor.*``. A head of another number of classes, or position embeddings of another
    grid, stay as they are in the model, and are reported.

    Args:
        model: Any module.
        source: A state dict, a training script's dict around one (``{"model": ...}``), or a file of either. Files are
            read with ``weights_only=True``. A prefix ``module.`` (DistributedDataParallel) is taken off.

    Raises:
        ValueError: If there is no state dict, or none of its names is the model's.

    Example:
        >>> report = load_checkpoint(nn.Linear(2, 3), {"model": {"weight": torch.ones(3, 2), "bias": torch.ones(5)}})
        >>> print(report)
        loaded 1 tensors
        another shape: bias is [3], checkpoint has [5]
    """
    loaded = source if isinstance(source, Mapping) else torch.load(source, map_location="cpu", weights_only=True)
    theirs, ours = _tensors(loaded), model.state_dict()
    fits = [k for k in ours if k in theirs and theirs[k].shape == ours[k].shape]
    if not fits:
        raise ValueError(
            f"Expected a checkpoint with names of {type(model).__name__} (got {len(theirs)} others, such as "
            f"{next(iter(theirs), None)!r}; the model has {next(iter(ours), None)!r})."
        )
    model.load_state_dict({k: theirs[k] for k in fits}, strict=False)
    shapes = [(k, list(ours[k].shape), list(theirs[k].shape)) for k in ours if k in theirs and k not in set(fits)]
    return LoadReport(fits, [k for k in ours if k not in theirs], [k for k in theirs if k not in ours], shapes)


def _tensors(loaded: Any) -> dict[str, Tensor]:
    """The state dict in whatever a file held."""
    while isinstance(loaded, Mapping) and not any(isinstance(v, Tensor) for v in loaded.values()):
        inner = next((loaded[k] for k in WRAPPERS if isinstance(loaded.get(k), Mapping)), None)
        if inner is None:
            raise ValueError(
                f"Expected a state dict, or a dict with one of {', '.join(WRAPPERS)} (got {list(loaded)})."
            )
        loaded = inner
    if not isinstance(loaded, Mapping):
        raise ValueError(f"Expected a state dict (got {type(loaded).__name__}).")
    found = {k: v for k, v in loaded.items() if isinstance(v, Tensor)}
    wrapped = bool(found) and all(k.startswith("module.") for k in found)
    return {k.removeprefix("module.") if wrapped else k: v for k, v in found.items()}
