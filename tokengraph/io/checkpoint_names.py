"""Finds the state dict in a checkpoint that fits a model: its key and the prefix of its names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

PLAIN = ("model", "state_dict", "model_state_dict", "module", "net", "network", "weights", "params")
EMA = (
    *("model_ema", "state_dict_ema", "ema", "ema_model", "ema_state_dict", "model_ema_state_dict"),
    *("ema_model_state_dict", "params_ema", "module_ema", "net_ema", "network_ema"),
)
WRAPPERS = (*PLAIN, *EMA, "teacher", "student")  # keys under which training scripts store state dicts, best first
WORDS = frozenset(  # parts of prefixes that wrappers add to names
    (*WRAPPERS, "backbone", "encoder", "visual", "trunk", "vit", "image_encoder", "vision_model", "vision_tower")
) | {"base_model", "_forward_module", "online_encoder", "_orig_mod"}
# Wrappers of single blocks add these words inside names, too.
INSIDE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
DEPTH = 4  # of nested dicts to search


@dataclass(frozen=True)
class Fit:
    """One way to read a checkpoint.

    Args:
        key: The dotted key of the state dict: ``"model"``, ``"state.model"``; empty: the outermost dict.
        prefix: The prefix of the checkpoint's names.
        own: The prefix of the model's names, if the model is wrapped.
        names: Maps each shared name from the model's to the checkpoint's form.
        loads: How many of these tensors have the same shape in both.
    """

    key: str
    prefix: str
    own: str
    names: dict[str, str]
    loads: int

    @property
    def shown(self) -> str:
        """The prefix as it appears in the checkpoint, with the parts that wrappers add inside names."""
        left, shown = self.prefix.split(".")[:-1], ""
        for part in next(iter(self.names.values())).split(".")[:-1]:
            if part not in INSIDE and part != next(iter(left), None):
                break
            left, shown = (left if part in INSIDE else left[1:]), f"{shown}{part}."
        return shown

    @property
    def ema(self) -> bool:
        """True if key or prefix say that these are averaged weights (EMA)."""
        return any(word in EMA for word in (*self.key.split("."), *self.prefix.split(".")))

    @property
    def order(self) -> tuple[int, int, int]:
        """Sort key among several that fit; the smallest is loaded."""
        words = [w for w in (*self.key.split("."), *self.prefix.split(".")) if w in WRAPPERS]
        return max((WRAPPERS.index(w) for w in words), default=-1), -self.loads, len(self.prefix)


def state_dicts(loaded: Any, key: str = "", depth: int = DEPTH) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yields each state dict in the content of a file with its dotted key, outermost first."""
    if isinstance(loaded, nn.Module):
        loaded = loaded.state_dict()
    if not isinstance(loaded, Mapping):
        return
    found = {k: t for k, v in loaded.items() if isinstance(k, str) and (t := _tensor(v)) is not None}
    if found:
        yield key, found
    for name, value in loaded.items() if depth else ():
        if isinstance(name, str):
            yield from state_dicts(value, f"{key}.{name}" if key else name, depth - 1)


def fits(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], key: str, prefix: str | None = None) -> list[Fit]:
    """Returns every way to match the model's names with one state dict, with known prefixes or a given one."""
    plain = {_without_inside(k): k for k in theirs}
    own = {_without_inside(k): k for k in ours}
    found = []
    for theirs_prefix in sorted(_prefixes(plain)) if prefix is None else [_without_inside(prefix)]:
        behind = {k.removeprefix(theirs_prefix): name for k, name in plain.items() if k.startswith(theirs_prefix)}
        for own_prefix in sorted(_prefixes(own)):
            names = {
                name: behind[rest]
                for k, name in own.items()
                if k.startswith(own_prefix) and (rest := k.removeprefix(own_prefix)) in behind
            }
            if names:
                loads = sum(ours[n].shape == theirs[t].shape for n, t in names.items())
                found.append(Fit(key, theirs_prefix, own_prefix, names, loads))
    return found


def choose(candidates: Iterable[Fit]) -> tuple[Fit | None, list[Fit]]:
    """Returns the fit to load, plain weights before averaged ones, and others that would load about as much."""
    best: dict[tuple[str, str], Fit] = {}
    for fit in candidates:  # of all ways to read the same names, prefer most tensors, then the shortest prefixes
        rank = (fit.loads, len(fit.names), -len(fit.own))
        now = best.get((fit.key, fit.prefix))
        if now is None or rank > (now.loads, len(now.names), -len(now.own)):
            best[fit.key, fit.prefix] = fit
    most = max((fit.loads for fit in best.values()), default=0)
    good = sorted((fit for fit in best.values() if most and 2 * fit.loads >= most), key=lambda fit: fit.order)
    return (good[0] if good else None), good[1:]


def guess_prefix(ours: Iterable[str], theirs: Iterable[str]) -> str:
    """Returns the prefix with which most of the model's names are in the checkpoint; empty if there is none."""
    own, votes = set(ours), Counter[str]()
    for name in theirs:
        parts = name.split(".")
        for i in range(1, len(parts)):
            if ".".join(parts[i:]) in own:
                votes[".".join(parts[:i]) + "."] += 1
    return max(votes, key=lambda p: votes[p], default="")


def _tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return torch.from_numpy(np.ascontiguousarray(value))
    return None


def _without_inside(name: str) -> str:
    parts = name.split(".")
    return ".".join(part for part in parts if part not in INSIDE)


def _prefixes(names: Iterable[str]) -> set[str]:
    """Returns every prefix of the names that consists of known words, with the final dot, and the empty prefix."""
    found = {""}
    for name in names:
        prefix = ""
        for word in name.split(".")[:-1]:
            if word not in WORDS:
                break
            prefix += f"{word}."
            found.add(prefix)
    return found
