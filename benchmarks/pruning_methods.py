"""Attached pruning and holding methods over their ideals and over the dense model, at published settings.

Run: ``python benchmarks/pruning_methods.py [--quick] [--only evit ats] [--batch 8] [--threads 1]``

The model is timm's deit_small_patch16_224 with random weights and images. An ideal is the same model run on the same
numbers of tokens without any choice (:func:`tokengraph.testing.ideal`), around blocks for methods whose tokens idle;
attached model, ideal and dense model take turns, and ratios are taken in each round. Launches a step are as in
methods.py. Random weights decide how many tokens ATS, SViT and A-ViT keep, and differently than trained ones would: no
token of an untrained model halts at A-ViT's published settings, so a second row centres its scores on zero.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from command import Benchmark, Result, Run
from harness import Effort, interleave
from report import markdown, progress, ratio_fields, timing_fields, with_quartiles
from torch import Tensor, nn

import tokengraph as tg
from tokengraph.compat import timm
from tokengraph.testing.ideal import ideal
from tokengraph.testing.launches import operations

COLUMNS = (
    "method", "tokens an image worked on", "attached ms", "attached / ideal [quartiles]", "goal",
    "attached / dense [quartiles]", "launches a step",
)  # fmt: skip
LEFT = (196, 193, 175, 155, 140, 132, 120, 106, 87, 63, 55, 2)  # DiffRate's published counts for 2.9 GMACs
DROPPED = [min((a + b + 1) // 2, 196) + 1 for a, b in zip((196, *LEFT), LEFT, strict=False)]


@dataclass(frozen=True)
class Method:
    """A method at a published setting.

    Attributes:
        name: In the table.
        select: The strategy.
        schedule: The schedule; ``None``: its own.
        goal: The largest ratio to its ideal that is aimed for; 0: faster than dense is.
    """

    name: str
    select: Any
    schedule: Any = None
    goal: float = 1.05


METHODS = (
    Method("evit", tg.TopK(score="class", fuse=True), tg.schedule.evit(0.7, (3, 6, 9))),
    Method("diffrate", tg.DiffRate(DROPPED, [n + 1 for n in LEFT], patches=196)),
    Method("diffrate, by similarity", tg.DiffRate(DROPPED, [n + 1 for n in LEFT], patches=196, merge_by="similarity")),
    Method("ppt", tg.PPT()),
    Method("tps, etps", tg.TPS(variant="etps")),
    Method("tps, dtps", tg.TPS()),
    Method("idlevit", tg.IdleViT(), goal=1.10),
    Method("evovit", tg.EvoViT(), goal=1.10),
    Method("ats", tg.ATS(), goal=0),
    Method("a-vit, published (none halts)", tg.AViT.published("small"), goal=0),
    Method("a-vit, centred scores", tg.AViT(10.0, 0.0), goal=0),
    Method("svit", tg.SViT(), goal=0),
)


def results(run: Run) -> Iterator[Result]:
    """A row for each method."""
    args = run.args
    chosen = [m for m in METHODS if not args.only or any(word in m.name for word in args.only)]
    torch.manual_seed(0)
    model = timm.create_model("deit_small_patch16_224").eval().to(run.device)
    images = torch.randn(args.batch, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(run.device)
    rows = []
    with progress(len(chosen)) as step, torch.no_grad():
        for method in chosen:
            step(method.name)
            rows.append(measure(method, model, images, run.effort))
    cells = [_cells(row) for row in rows]
    page = f"{run.machine}; {run.versions}. B = {args.batch}.\n\n{markdown(COLUMNS, cells)}"
    yield Result({"rows": rows}, page, [(BENCHMARK.title, COLUMNS, cells)])


def measure(method: Method, model: nn.Module, images: Tensor, effort: Effort) -> dict[str, Any]:
    """Times a method, its ideal and the dense model in turns, and counts the launches of the first two."""
    with ExitStack() as stack:
        ours, theirs = copy.deepcopy(model), copy.deepcopy(model)
        torch.manual_seed(0)  # of gates and predictors
        handle = stack.enter_context(tg.attach(ours, method.select, method.schedule))
        ours.eval()(images)
        select, trace = handle.select, handle.trace
        each = [trace.worked_per_image(layer) for layer in range(trace.depth + 1)]
        counts = [round(sum(n) / len(n)) for n in each]  # where images differ, ideals run on the mean
        stack.enter_context(ideal(theirs, counts, select.placement, open_maps=select.needs_map, span=select.around))
        calls = {"attached": lambda: ours(images), "ideal": lambda: theirs(images), "dense": lambda: model(images)}
        more = operations(calls["attached"]).total() - operations(calls["ideal"]).total()
        timings = interleave(calls, effort)
    before = [counts[0]] * len(counts) if select.placement == "around" else counts
    steps = sum(n < m for m, n in zip(before[:-1], counts[1:], strict=True))
    row = {"method": method.name, "counts": counts, "goal": method.goal, "steps": steps}
    row |= {"launches": round(more / max(steps, 1), 1)} | timing_fields(timings["attached"])
    row |= ratio_fields("ratio", timings["attached"].over(timings["ideal"]))
    return row | ratio_fields("dense", timings["attached"].over(timings["dense"]))


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", metavar="WORD", help="methods whose names have one of these words")
    parser.add_argument("--batch", type=int, default=8)


def _cells(row: dict[str, Any]) -> list[str]:
    counts = [f"{n} x{len(list(same))}" for n, same in groupby(row["counts"][1:])]
    shown = ", ".join(counts) if len(counts) < 6 else f"{row['counts'][1]} down to {row['counts'][-1]}"
    goal = f"{row['goal']:g} of ideal" if row["goal"] else "faster than dense"
    ratios = with_quartiles(row, "ratio", 3), with_quartiles(row, "dense", 3)
    return [row["method"], shown, f"{row['median_ms']:.0f}", ratios[0], goal, ratios[1], f"{row['launches']:g}"]


BENCHMARK = Benchmark(
    "pruning_methods",
    "Pruning methods over their ideals",
    __doc__,
    results,
    Effort(15, 40.0),
    Effort(3, 4.0),
    _options,
    "few rounds: some minutes",
)

if __name__ == "__main__":
    BENCHMARK.main()
