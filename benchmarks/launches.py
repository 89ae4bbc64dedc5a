"""Operations that each attached strategy adds to a model: what a GPU launches, and what no noise of a machine touches.

Run: ``python benchmarks/launches.py [--quick] [--only tome gtp] [--batch 8] [--against before.json]``

The model is timm's deit_small_patch16_224 with random weights and images. :func:`tokengraph.testing.launches` counts
the operations that reach PyTorch's dispatcher under ``inference_mode`` beyond the plain model, views and metadata left
out. A step is a block in which the number of tokens falls; steps share what a run needs once, and later blocks' biases.
The number depends on the device, because eager CPU runs check values that GPUs do not wait for.
"""

from __future__ import annotations

import argparse
import copy
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from command import Benchmark, Result, Run
from harness import Effort
from report import markdown, progress

import tokengraph as tg
from tokengraph.compat import timm
from tokengraph.testing import launches

COLUMNS = ("strategy", "steps", "operations a step", "before", "goal", "most frequent, a step")
relative = tg.schedule.relative


@dataclass(frozen=True)
class Counted:
    """A strategy at a schedule.

    Attributes:
        name: In the table.
        select: The strategy.
        schedule: Its schedule; ``None``: its own.
        goal: Operations a step to aim for; 0: none was set.
    """

    name: str
    select: Any
    schedule: Any
    goal: int = 0


THREE = relative({3: 0.7, 6: 0.7, 9: 0.7})
COUNTED = (
    Counted("tome", tg.ToMe(), 13, 30),
    Counted("topk", tg.TopK(), THREE, 25),
    Counted("evit", tg.TopK(fuse=True), THREE, 35),
    Counted("dynamicvit", tg.DynamicViT(), None, 40),
    Counted("gtp", tg.GTP(), 8, 55),
    Counted("expedite", tg.Expedite(), {4: 0.5}, 50),
    Counted("dpc-knn", tg.DPCKNN(reduce="mean"), {4: 0.25}, 70),
    Counted("dpc-knn, mlerp", tg.DPCKNN(), {4: 0.25}),
    Counted("ailurus", tg.AiluRus(reduce="mean"), {4: 0.25}, 80),
    Counted("ailurus, mlerp", tg.AiluRus(), {4: 0.25}),
    Counted("token-migration", tg.TokenMigration(), {4: 0.5}),
    Counted("grid-pool", tg.GridPool(), {4: 0.25}, 25),
    Counted("random", tg.Random(), THREE, 20),
    Counted("pitome", tg.PiToMe.released(), tg.schedule.ratio(0.9125), 30),
    Counted("tofu", tg.ToFu(), tg.schedule.ratio(0.9, prefix=1), 30),
    Counted("mctf", tg.MCTF(), tg.MCTF.published_schedule(), 30),
    Counted("mpm", tg.MPM(), None, 30),
    Counted("g2tm", tg.G2TM(), None, 30),
    Counted("algm", tg.ALGM(), None, 30),
    Counted("dtem", tg.DTEM(), 16, 30),
    Counted("cubist-merge", tg.CubistMerge(), {4: 0.5}),
    Counted("grid-tome, around attention", tg.GridToMe.published(), {0: 0.5}),
)


def results(run: Run) -> Iterator[Result]:
    """One row for each strategy."""
    args = run.args
    chosen = [c for c in COUNTED if not args.only or any(word in c.name for word in args.only)]
    torch.manual_seed(0)
    model = timm.create_model("deit_small_patch16_224").eval().to(run.device)
    images = torch.randn(args.batch, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(run.device)
    before = _before(args.against)
    rows = []
    with progress(len(chosen)) as step, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for each in chosen:
            step(each.name)
            rows.append(count(each, model, images) | {"before": before.get(each.name)})
    cells = [_cells(row) for row in rows]
    page = f"{run.machine}; {run.versions}. B = {args.batch}.\n\n{markdown(COLUMNS, cells)}\n{BENCHMARK.notes}\n"
    yield Result({"rows": rows}, page, [(BENCHMARK.title, COLUMNS, cells)])


def count(each: Counted, model: torch.nn.Module, images: torch.Tensor) -> dict[str, Any]:
    """Attaches a strategy to a copy of the model and counts."""
    ours = copy.deepcopy(model)
    with tg.attach(ours, each.select, each.schedule):
        found = launches(ours, images)
    steps = max(found.steps, 1)
    kinds = {kind: round(n / steps, 1) for kind, n in found.by_kind.items()}
    return {
        "strategy": each.name,
        "steps": found.steps,
        "a_step": round(found.a_step, 1),
        "goal": each.goal,
        "plain": found.plain,
        "attached": found.attached,
        "by_kind": kinds,
        "by_block": {name: sum(kinds.values()) for name, kinds in found.by_step.items()},
    }


def _before(path: Path | None) -> dict[str, float]:
    """Operations a step of an earlier run, by strategy."""
    if path is None:
        return {}
    return {row["strategy"]: row["a_step"] for row in json.loads(path.read_text(encoding="utf-8"))["rows"]}


def _cells(row: dict[str, Any]) -> list[str]:
    frequent = ", ".join(f"{kind} {n:g}" for kind, n in list(row["by_kind"].items())[:6])
    before = "" if row["before"] is None else f"{row['before']:g}"
    goal = str(row["goal"]) if row["goal"] else ""
    return [row["strategy"], str(row["steps"]), f"{row['a_step']:g}", before, goal, frequent]


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", metavar="WORD", help="strategies whose names have one of these words")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--against", type=Path, help="JSON of an earlier run, for the column before")


BENCHMARK = Benchmark(
    "launches",
    "Operations that strategies add to a model",
    __doc__,
    results,
    Effort(1, 1.0),
    Effort(1, 1.0),
    _options,
    "the same; nothing is timed",
)

if __name__ == "__main__":
    BENCHMARK.main()
