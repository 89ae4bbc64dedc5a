"""Predicts a plan's time on this device from a few measurements of the plain model and of a strategy's steps."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn

from tokengraph.attach.attach import attach
from tokengraph.evaluate.timing import Timed, time_forms
from tokengraph.planning.record import Plan

ROUNDS = 7


@dataclass(frozen=True)
class Clock:
    """Time of a batch: ``fixed + rate * multiply_adds + step * (number of steps)``, in milliseconds.

    Args:
        fixed: Time that no plan saves: embedding, head, calls.
        rate: Milliseconds for the plain model's multiply-adds.
        plain: Measured time of the plain model.
    """

    fixed: float
    rate: float
    plain: float

    @classmethod
    def fit(cls, costs: Sequence[float], times: Sequence[float]) -> Clock:
        """Fits a line to the times of several input sizes; the first is the plain model's own.

        Args:
            costs: Multiply-adds as shares of the plain model's.
            times: Milliseconds of a batch.
        """
        if len(costs) < 2:
            return cls(0.0, times[0], times[0])
        rate, fixed = np.polyfit(costs, times, 1)
        rate = float(np.clip(rate, 0.05 * times[0], times[0] / costs[0]))
        return cls(max(times[0] - rate, 0.0), rate, times[0])


def time_plans(model: nn.Module, plans: Sequence[Plan], batch: Tensor, rounds: int = ROUNDS) -> list[float | None]:
    """Measures the median milliseconds of a batch under each plan, in interleaved rounds; ``None`` if it cannot run.

    Args:
        model: The model, plain; it is plain again at the end.
        plans: The plans; a plain one runs the model as it is.
        batch: A batch of images.
        rounds: Rounds.
    """
    forms = [Timed(str(i), "attached", partial(_enter, model, plan), batch) for i, plan in enumerate(plans)]
    times = time_forms(forms, rounds, show=False)
    found = [times.get(str(i)) for i in range(len(plans))]
    return [None if each is None else float(np.median(each["attached"])) for each in found]


def _enter(model: nn.Module, plan: Plan) -> AbstractContextManager[Any]:
    @contextmanager
    def enter() -> Any:
        if plan.plain:
            yield model
            return
        with attach(model, plan):
            yield model

    return enter()
