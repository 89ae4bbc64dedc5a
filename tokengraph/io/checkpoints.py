"""Loads weights by name, and reports the names that did not match."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

from torch import Tensor, nn

from tokengraph.io.checkpoint_files import read_checkpoint
from tokengraph.io.checkpoint_names import WRAPPERS, Fit, choose, fits, guess_prefix, state_dicts


@dataclass(frozen=True)
class LoadReport:
    """Lists the names that were loaded and those that were not. ``print`` shows it as text.

    Args:
        loaded: Names that were loaded.
        missing: Names of the model that the checkpoint lacks; these tensors are unchanged.
        unexpected: Names of the checkpoint that the model lacks.
        mismatched: ``(name, model's shape, checkpoint's shape)`` where shapes differ; these tensors are unchanged.
        key: The key of the weights in the checkpoint; empty: the outermost dict.
        prefix: The prefix that was removed from the checkpoint's names.
        ema: True if key or prefix say that these are averaged weights.
        others: The arguments that would load other fitting weights of the checkpoint.
    """

    loaded: list[str]
    missing: list[str]
    unexpected: list[str]
    mismatched: list[tuple[str, list[int], list[int]]]
    key: str = ""
    prefix: str = ""
    ema: bool = False
    others: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """True if the names and shapes of model and checkpoint all matched."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        source = f" from {self.key!r}" if self.key else ""
        source += " (EMA weights)" if self.ema else ""
        source += f", prefix {self.prefix!r} taken off" if self.prefix else ""
        lines = [f"loaded {len(self.loaded)} tensors{source}"]
        lines += [f"not loaded: {other}" for other in self.others]
        lines += [f"missing in the checkpoint: {', '.join(self.missing)}"] if self.missing else []
        lines += [f"unknown to the model: {', '.join(self.unexpected)}"] if self.unexpected else []
        lines += [f"another shape: {name} is {ours}, checkpoint has {theirs}" for name, ours, theirs in self.mismatched]
        return "\n".join(lines)


def load_checkpoint(
    model: nn.Module,
    source: str | PathLike[str] | Mapping[str, Any] | nn.Module,
    *,
    key: str | None = None,
    prefix: str | None = None,
    weights_only: bool = True,
) -> LoadReport:
    """Loads the tensors of a checkpoint whose names and shapes match the model's, and reports all others.

    Published checkpoints of DynamicViT load into a timm model with :class:`~tokengraph.DynamicViT` attached: their
    names are timm's, and ``score_predictor.*``. Tensors of another shape, such as a head for another number of classes
    or position embeddings for another grid, are reported, and the model keeps its own.

    If a checkpoint has several sets of weights, plain weights are preferred over averaged ones (``model_ema``,
    ``state_dict_ema``, ``teacher``), and the report names the others. Prefixes of wrappers (``module.``,
    ``_orig_mod.``, ``model.``, ``backbone.`` and others, also combined) are removed, also from the model's names.

    Args:
        model: Any module.
        source: A state dict, a training script's dict around one (``{"model": ...}``), a module, or a file of any of
            these, by ``torch.save`` or safetensors.
        key: The key of the state dict in the checkpoint, such as ``"model_ema"``; with dots for nested dicts. By
            default known keys are tried.
        prefix: The prefix to remove from the checkpoint's names, such as ``"teacher.backbone."``. By default known
            prefixes are tried.
        weights_only: Load only tensors and harmless types from files, so that they run no code. A whole pickled model
            needs ``False``; use it only for files that you trust.

    Returns:
        A report of the names.

    Raises:
        ValueError: If the file cannot be read, there is no state dict, or none of its names matches; the message says
            what to do.
        ImportError: If the file is in safetensors format and that package is not installed.

    Cost: one read of the file, and one copy of the tensors.

    Example:
        >>> report = load_checkpoint(nn.Linear(2, 3), {"model": {"weight": torch.ones(3, 2), "bias": torch.ones(5)}})
        >>> print(report)
        loaded 1 tensors from 'model'
        another shape: bias is [3], checkpoint has [5]
    """
    loaded = source if isinstance(source, Mapping | nn.Module) else read_checkpoint(source, weights_only)
    found, ours = dict(state_dicts(loaded)), model.state_dict()
    if not found:
        keys = list(loaded) if isinstance(loaded, Mapping) else type(loaded).__name__
        raise ValueError(f"Expected a state dict, or a dict with one of {', '.join(WRAPPERS[:4])}, ... (got {keys}).")
    searched = _searched(found, key)
    if prefix and not prefix.endswith("."):
        prefix = f"{prefix}."
    candidates = [fit for name, theirs in searched.items() for fit in fits(ours, theirs, name, prefix)]
    chosen, others = choose(candidates)
    if chosen is None:
        raise ValueError(_nothing_fits(type(model).__name__, ours, found, searched, candidates))
    return _load(model, ours, found[chosen.key], chosen, others)


def _searched(found: Mapping[str, dict[str, Tensor]], key: str | None) -> dict[str, dict[str, Tensor]]:
    """Returns the state dicts to search: the one under the given key, or those under known keys."""
    if key is None:
        return {name: theirs for name, theirs in found.items() if not name or name.split(".")[-1] in WRAPPERS}
    inside = {name: theirs for name, theirs in found.items() if name == key or name.startswith(f"{key}.")}
    if not inside:
        raise ValueError(f"Expected key to be one of {', '.join(map(repr, found))} (got {key!r}).")
    return inside


def _load(
    model: nn.Module, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], fit: Fit, others: list[Fit]
) -> LoadReport:
    same = [name for name, their in fit.names.items() if ours[name].shape == theirs[their].shape]
    model.load_state_dict({name: theirs[fit.names[name]] for name in same}, strict=False)
    shapes = [
        (name, list(ours[name].shape), list(theirs[their].shape))
        for name, their in fit.names.items()
        if ours[name].shape != theirs[their].shape
    ]
    known = {name for one in (fit, *others) if one.key == fit.key for name in one.names.values()}
    missing, unexpected = [k for k in ours if k not in fit.names], [k for k in theirs if k not in known]
    listed = [_argument(one, fit) for one in others]
    return LoadReport(same, missing, unexpected, shapes, fit.key, fit.shown, fit.ema, listed)


def _argument(other: Fit, chosen: Fit) -> str:
    """Returns the argument that loads the other fit instead."""
    return f"key={other.key!r}" if other.key != chosen.key else f"prefix={other.shown!r}"


def _nothing_fits(
    kind: str,
    ours: Mapping[str, Tensor],
    found: Mapping[str, dict[str, Tensor]],
    searched: Mapping[str, dict[str, Tensor]],
    candidates: list[Fit],
) -> str:
    """Returns the error message if nothing loads: the content of the checkpoint, and an argument that would help."""
    if candidates:
        name, their = next(iter(candidates[0].names.items()))
        shape = list(found[candidates[0].key][their].shape)
        return f"Expected a checkpoint with shapes of {kind} (got {name} of {shape} for {list(ours[name].shape)})."
    for key, theirs in found.items():
        if key not in searched and any(fit.loads for fit in fits(ours, theirs, key)):
            hint = f"Say so: load_checkpoint(..., key={key!r})."
            return f"Expected weights under a known key (got {key!r}). {hint}"
    for theirs in searched.values():
        prefix = guess_prefix(ours, theirs)
        if prefix:
            hint = f"Say so: load_checkpoint(..., prefix={prefix!r})."
            return f"Expected a checkpoint with names of {kind} (got them behind {prefix!r}). {hint}"
    names = next((theirs for theirs in searched.values()), None) or next(iter(found.values()))
    return (
        f"Expected a checkpoint with names of {kind} (got {len(names)} others, such as {next(iter(names), None)!r}; "
        f"the model has {next(iter(ours), None)!r})."
    )
