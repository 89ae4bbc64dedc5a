"""Attached methods over their ideals and over the dense model, which methods.py and pruning_methods.py share."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from command import Run
from harness import Effort, interleave
from report import progress, ratio_fields, timing_fields
from torch import Tensor, nn

import tokengraph as tg
from tokengraph.compat import timm
from tokengraph.testing.ideal import ideal
from tokengraph.testing.launches import operations


@dataclass(frozen=True)
class Method:
    """A method at a published setting.

    Attributes:
        name: In the table.
        select: The strategy.
        schedule: The schedule; ``None``: its own.
        goal: The largest ratio to its ideal that is aimed for; 0: none, or another goal.
    """

    name: str
    select: Any
    schedule: Any = None
    goal: float = 1.06


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds which methods, and the batch."""
    parser.add_argument("--only", nargs="+", metavar="WORD", help="methods whose names have one of these words")
    parser.add_argument("--batch", type=int, default=8)


def measure_all(run: Run, methods: Sequence[Method], *, dense: bool) -> list[dict[str, Any]]:
    """A row for each of the chosen methods in deit_small; ``dense``: over the dense model too."""
    args = run.args
    chosen = [m for m in methods if not args.only or any(word in m.name for word in args.only)]
    torch.manual_seed(0)
    model = timm.create_model("deit_small_patch16_224").eval().to(run.device)
    images = torch.randn(args.batch, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(run.device)
    rows = []
    with progress(len(chosen)) as step, torch.no_grad():
        for method in chosen:
            step(method.name)
            rows.append(_measure(method, model, images, run.effort, dense))
    return rows


def _measure(method: Method, model: nn.Module, images: Tensor, effort: Effort, dense: bool) -> dict[str, Any]:
    """Times a method, its ideal and perhaps the dense model in turns, and counts the launches of the first two."""
    with ExitStack() as stack:
        ours, theirs = copy.deepcopy(model), copy.deepcopy(model)
        torch.manual_seed(0)  # of gates and predictors
        handle = stack.enter_context(tg.attach(ours, method.select, method.schedule))
        ours.eval()(images)
        select, trace = handle.select, handle.trace
        each = [trace.worked_per_image(layer) for layer in range(trace.depth + 1)]
        counts = [round(sum(n) / len(n)) for n in each]  # where images differ, ideals run on the mean
        stack.enter_context(ideal(theirs, counts, select.placement, open_maps=select.needs_map, span=select.around))
        calls = {"attached": lambda: ours(images), "ideal": lambda: theirs(images)}
        more = operations(calls["attached"]).total() - operations(calls["ideal"]).total()
        timings = interleave(calls | ({"dense": lambda: model(images)} if dense else {}), effort)
    before = [counts[0]] * len(counts) if select.placement == "around" else counts
    steps = sum(n < m for m, n in zip(before[:-1], counts[1:], strict=True))
    row = {"method": method.name, "counts": counts, "goal": method.goal, "steps": steps}
    row |= {"launches": round(more / max(steps, 1), 1)} | timing_fields(timings["attached"])
    row |= ratio_fields("ratio", timings["attached"].over(timings["ideal"]))
    return row | (ratio_fields("dense", timings["attached"].over(timings["dense"])) if dense else {})


def shown_counts(counts: Sequence[int], most: int = 5) -> str:
    """Patch tokens that blocks work on, as text: at most ``most`` runs of equal ones, or first and last."""
    found = [f"{n} x{len(list(same))}" for n, same in groupby(counts[1:])]
    return ", ".join(found) if len(found) <= most else f"{counts[1]} down to {counts[-1]}"
