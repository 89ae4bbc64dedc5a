"""Measured time of every setting, in turn: the dense model, the form that is attached, and its ideal."""

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

from tokengraph.evaluate.progress import Progress
from tokengraph.testing.ideal import ideal

LEAST = 0.02  # seconds a measurement should take; shorter runs are repeated within it


@dataclass
class Timed:
    """One form that is timed.

    Args:
        name: Of the setting.
        kind: ``"plain"``, ``"attached"`` or ``"ideal"``.
        enter: Puts the form in place; gives what takes the images.
        images: A batch at the form's resolution.
        seconds: A run, one number a round.
    """

    name: str
    kind: str
    enter: Callable[[], AbstractContextManager[Any]]
    images: Tensor
    seconds: list[float] = field(default_factory=list)
    repeat: int = 1


def time_forms(forms: list[Timed], rounds: int, *, show: bool = True) -> dict[str, dict[str, list[float]]]:
    """Times all forms in turn, A B C A B C ..., so that slow phases of the machine meet all of them.

    A form that cannot run is left out.

    Returns:
        For each setting and kind the milliseconds of a run, a number a round.
    """
    with Progress((rounds + 1) * len(forms), "timing", show) as progress:
        going = []
        for form in forms:  # a round that counts not: warms up, and finds out how often short runs are repeated
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
    model: nn.Module, counts: list[int], placement: str, opens: bool
) -> Callable[[], AbstractContextManager[Any]]:
    """The context of a model cut to token counts, with nothing chosen."""
    return partial(ideal, model, counts, placement, open_maps=opens)


def _works(form: Timed) -> bool:
    try:
        spent = _once(form)
        form.repeat = max(1, min(1000, round(LEAST / max(spent, 1e-6))))
    except Exception:  # its row says why it fails, or the ideal of these blocks cannot be cut
        return False
    return True


def _once(form: Timed) -> float:
    """Seconds a run."""
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
    """Median, lower and upper quartile."""
    low, median, high = np.quantile(np.asarray(values), [0.25, 0.5, 0.75])
    return float(median), float(low), float(high)
