"""Counts, times and compares the plain model, the model with strategies attached, and their ideals."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokengraph.adapters import find_adapter
from tokengraph.attach.attach import attach
from tokengraph.cost import ModelCost, vit_cost
from tokengraph.optional import optional
from tokengraph.select.base import Select
from tokengraph.select.grid_pool import GridPool
from tokengraph.select.peaks.ailurus import AiluRus
from tokengraph.select.tome import ToMe
from tokengraph.testing.ideal import ideal

if TYPE_CHECKING:
    from rich.console import Console

SECONDS = 15.0  # approximate limit of the timing


@dataclass
class Run:
    """One form of a model.

    Args:
        name: Name of the form; an ideal has the name of its strategy.
        kind: ``"plain"``, ``"attached"`` or ``"ideal"``.
        enter: Returns a context in which the model has this form.
        counts: Patch tokens before the first block and after each.
        gflops: GFLOPs of all blocks, and of choosing and reducing if the form does that.
        features: Patch tokens after the final norm, one for each input patch, ``[B, N, C]``.
        times: Measured milliseconds, one for each round.
    """

    name: str
    kind: str
    enter: Callable[[], AbstractContextManager[Any]]
    counts: list[int]
    gflops: float
    features: Tensor | None = None
    times: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median time in milliseconds."""
        return self._quantile(0.5)

    @property
    def spread(self) -> float:
        """Interquartile range of the times in milliseconds."""
        return self._quantile(0.75) - self._quantile(0.25)

    def similarity(self, other: Run) -> tuple[float, float]:
        """Returns the mean cosine of patch features to another run's, plain and minus the other run's mean token."""
        assert self.features is not None and other.features is not None
        mean = other.features.mean(dim=1, keepdim=True)
        plain = F.cosine_similarity(self.features, other.features, dim=2)
        centred = F.cosine_similarity(self.features - mean, other.features - mean, dim=2)
        return float(plain.mean()), float(centred.mean())

    def _quantile(self, q: float) -> float:
        return float(torch.tensor(self.times).quantile(q))


def strategies(patches: int, layer: int) -> list[tuple[str, Select, Any]]:
    """Returns name, strategy and schedule of each form that the demo attaches."""
    removed = max(1, round(patches * 13 / 196))  # ToMe's published share: 13 of 196 tokens per block
    return [
        (f"AiluRus {{{layer}: 0.25}}", AiluRus(), {layer: 0.25}),
        (f"ToMe r={removed}", ToMe(), removed),
        (f"grid-pool {{{layer}: 0.25}}", GridPool(), {layer: 0.25}),
    ]


def check_attaches(model: nn.Module, layer: int) -> None:
    """Attaches every form and removes it again.

    Raises:
        ValueError: If the model supports none of them, with the message of the last one.
    """
    _, adapter = find_adapter(model)
    height, width = adapter.grid(model)
    refused = []
    for _, select, schedule in strategies(height * width, layer):
        try:
            attach(model, select, schedule, lift=True).remove()
        except ValueError as error:
            refused.append(error)
        else:
            return
    raise refused[-1]


def make_runs(model: nn.Module, images: Tensor, layer: int) -> tuple[list[Run], list[str]]:
    """Makes the runs of the plain model, of each strategy and of its ideal, with counts, GFLOPs and features.

    Returns:
        The runs, the plain model's first, and one line about each form that was left out.
    """
    _, adapter = find_adapter(model)
    height, width = adapter.image_grid(adapter.embedding(model), images)
    patches, prefix = height * width, adapter.num_prefix(model)
    counts = [patches] * (len(adapter.blocks(model)) + 1)
    full = _features(model, images, prefix)
    runs = [Run("plain model", "plain", nullcontext, counts, _cost(model, counts).total.flops / 1e9, full)]
    left_out = []
    for name, select, schedule in strategies(patches, layer):
        try:
            with attach(model, select, schedule, lift=True) as handle:
                features = _features(model, images, prefix)
                counts = handle.trace.counts_worked
        except (RuntimeError, ValueError) as error:
            left_out.append(f"{name} left out: {str(error).splitlines()[0]}")
            continue
        cost = _cost(model, counts, select)
        attached = partial(attach, model, select, schedule)
        runs.append(Run(name, "attached", attached, counts, cost.total.flops / 1e9, features))
        if isinstance(select, GridPool):  # a control, of which only the features matter
            continue
        cut = Run(
            name,
            "ideal",
            partial(ideal, model, counts, select.placement, span=select.around),
            counts,
            (cost.attention + cost.mlp).flops / 1e9,
        )
        reason = _fails(cut, model, images)
        if reason is None:
            runs.append(cut)
        else:
            left_out.append(f"The ideal of {name} left out, since these blocks cannot be cut: {reason}")
    return runs, left_out


def _features(model: nn.Module, images: Tensor, prefix: int) -> Tensor:
    """Returns the patch tokens after the final norm, ``[B, N, C]``."""
    tokens: Any = model.forward_features(images)  # type: ignore[operator]
    if isinstance(tokens, dict):  # NaFlex
        tokens = tokens["patches"]
    return tokens[:, prefix:]


def _fails(run: Run, model: nn.Module, images: Tensor) -> str | None:
    """Returns why the model cannot run in that form, or ``None`` if it can."""
    try:
        with run.enter():
            model(images)
    except (RuntimeError, ValueError) as error:
        return str(error).splitlines()[0]
    return None


def measure(runs: list[Run], model: nn.Module, images: Tensor, console: Console) -> None:
    """Times all runs in interleaved rounds, so that changes in the machine's load affect all alike."""
    start = time.perf_counter()
    _round(runs, model, images)
    for run in runs:
        run.times.clear()
    rounds = int(min(max(SECONDS / (time.perf_counter() - start), 5), 15))
    track = optional("rich.progress").track
    for _ in track(range(rounds), description="timing", console=console, transient=True):
        _round(runs, model, images)


def _round(runs: list[Run], model: nn.Module, images: Tensor) -> None:
    for run in runs:
        with run.enter():
            start = time.perf_counter()
            model(images)
            run.times.append(1000 * (time.perf_counter() - start))


def _cost(model: nn.Module, counts: list[int], select: Select | None = None) -> ModelCost:
    _, adapter = find_adapter(model)
    first: Any = adapter.blocks(model)[0]
    hidden = getattr(getattr(first.mlp, "fc1", None), "out_features", None)
    channels = int(model.num_features)  # type: ignore[arg-type]
    return vit_cost(counts, channels, hidden=hidden, num_prefix=adapter.num_prefix(model), select=select)
