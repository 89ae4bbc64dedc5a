"""Measures the time of every setting in interleaved rounds: the dense model, the attached model and its ideal."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tokengraph.adapters.base import Adapter
from tokengraph.evaluate.progress import Progress
from tokengraph.select.base import Select
from tokengraph.testing.ideal import ideal

LEAST = 0.02  # seconds a measurement should take; shorter runs are repeated within it


@dataclass
class Timed:
    """One variant of the model to time.

    Args:
        name: Name of the setting.
        kind: ``"plain"``, ``"attached"`` or ``"ideal"``.
        enter: Context that prepares the model and yields a function of images.
        images: A batch at the setting's resolution.
        seconds: Seconds of a run in each round.
    """

    name: str
    kind: str
    enter: Callable[[], AbstractContextManager[Any]]
    images: Tensor
    seconds: list[float] = field(default_factory=list)
    repeat: int = 1


def time_forms(forms: list[Timed], rounds: int, *, show: bool = True) -> dict[str, dict[str, list[float]]]:
    """Times all variants in turn, A B C A B C ..., so that slow phases of the machine affect all of them.

    Leaves out variants that cannot run.

    Returns:
        For each setting and kind the milliseconds of a run in each round.
    """
    with Progress((rounds + 1) * len(forms), "timing", show) as progress:
        going = []
        for form in forms:  # an uncounted round: warms up, and sets the repetitions of short runs
            if _works(form):
                going.append(form)
            progress.step(note=form.name)
        for _ in range(rounds):
            for form in going:
                form.seconds.append(_once(form))
                progress.step(note=form.name)
    found: dict[str, dict[str, list[float]]] = {}
    for form in going:
        found.setdefault(form.name, {})[form.kind] = [1000 * s for s in form.seconds]
    return found


def ideal_form(
    model: nn.Module, counts: list[int], select: Select, adapter: Adapter | None
) -> Callable[[], AbstractContextManager[Any]]:
    """Returns a context in which the model runs with given token counts, cut where a strategy cuts, and no choice."""
    how = {"open_maps": select.needs_map, "span": select.around, "adapter": adapter}
    return partial(ideal, model, counts, select.placement, **how)


def _works(form: Timed) -> bool:
    try:
        spent = _once(form)
        form.repeat = max(1, min(1000, round(LEAST / max(spent, 1e-6))))
    except Exception:  # its row reports the error, or these blocks support no ideal
        return False
    return True


def _once(form: Timed) -> float:
    """Returns the seconds of a run."""
    with torch.no_grad(), form.enter() as run:
        _settle(form.images)
        start = time.perf_counter()
        for _ in range(form.repeat):
            run(form.images)
        _settle(form.images)
        return (time.perf_counter() - start) / form.repeat


def _settle(images: Tensor) -> None:
    if images.is_cuda:
        torch.cuda.synchronize(images.device)


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Returns median, lower and upper quartile."""
    low, median, high = np.quantile(np.asarray(values), [0.25, 0.5, 0.75])
    return float(median), float(low), float(high)
