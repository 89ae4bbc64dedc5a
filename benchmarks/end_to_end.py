"""Whole models: plain with fused attention, with a strategy attached, and the ideal with the same token counts.

Run: ``python benchmarks/end_to_end.py [--quick] [--models deit_small_patch16_224] [--batch 8] [--compile]``

All run in interleaved rounds in one process, with the same random weights; ratios are taken in each round. The ideal
truncates the sequence to the same counts at the same place in the block, and selects nothing. If the strategy reads
whole attention maps, the ideal uses unfused attention in the same blocks. GFLOPs are counted analytically for the
blocks of one image: attention, MLP, choosing and reducing.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from command import Benchmark, Result, Run
from harness import Call, Effort, Timing, interleave
from report import (
    markdown,
    progress,
    ratio_fields,
    timing_fields,
    with_quartiles,
)
from stock_models import OTHERS, Shape, make
from torch import Tensor, nn

import tokengraph as tg
from tokengraph.cost import vit_cost
from tokengraph.schedule import Schedule
from tokengraph.testing.ideal import ideal

COLUMNS = (
    "model",
    "name",
    "kind",
    "tokens out",
    "GFLOPs",
    "median ms",
    "IQR ms",
    "over plain",
    "over ideal",
    "speed-up",
)
TARGET_COLUMNS = ("target", "goal", "ratio [quartiles]", "reached")


@dataclass(frozen=True)
class Setting:
    """A strategy and where it acts."""

    name: str
    select: tg.Select
    schedule: Schedule | None


SETTINGS = (
    Setting("nothing removed", tg.ToMe(), 0),
    Setting("ToMe r=13", tg.ToMe(), 13),
    Setting("AiluRus 50 % after 2", tg.AiluRus(), {2: 0.5}),
    Setting("DPC-KNN 50 % after 2", tg.DPCKNN(), {2: 0.5}),
    Setting("TopK 70 % at 3, 6, 9", tg.TopK(), {4: 0.7, 7: 0.49, 10: 0.343}),
    Setting("EViT 70 % at 3, 6, 9", tg.TopK(fuse=True), {4: 0.7, 7: 0.49, 10: 0.343}),
    Setting("Random 50 % after 2", tg.Random(), {2: 0.5}),
    Setting("GridPool 50 % after 2", tg.GridPool(), {2: 0.5}),
    Setting("DynamicViT 70 % at 3, 6, 9", tg.DynamicViT(0.7), None),
    Setting("GTP P=8, mixed-max, scales", tg.GTP(), 8),
    Setting("GTP P=8, cls-mean", tg.GTP(score="cls-mean", scales=False), 8),
    Setting("Expedite 10x10 from 3 to 10", tg.Expedite(clusters=(10, 10)), {3: "cluster", 10: "reconstruct"}),
)
QUICK = SETTINGS[1:3]
# (name, ratio, goal, whether to stay below it), at B=8, 224 px
EVERYWHERE = (("nothing removed", "ratio_to_plain", 1.01, True), ("ToMe r=13", "ratio_to_ideal", 1.06, True))
DEIT_SMALL = (
    *EVERYWHERE,
    ("ToMe r=13", "speedup", 1.65, False),
    ("AiluRus 50 % after 2", "ratio_to_ideal", 1.08, True),
    ("DynamicViT 70 % at 3, 6, 9", "ratio_to_ideal", 1.06, True),
    ("DynamicViT 70 % at 3, 6, 9", "ratio_to_plain", 0.63, True),
    ("GTP P=8, mixed-max, scales", "ratio_to_ideal", 1.10, True),
    ("GTP P=8, mixed-max, scales", "ratio_to_plain", 0.80, True),
    ("GTP P=8, cls-mean", "ratio_to_ideal", 1.06, True),
    ("GTP P=8, cls-mean", "ratio_to_plain", 1.0, True),
)
TARGETS = {"deit_small_patch16_224": DEIT_SMALL} | dict.fromkeys(OTHERS, EVERYWHERE)
WHAT = {"ratio_to_ideal": "time over its ideal", "ratio_to_plain": "time over plain", "speedup": "speed over plain"}


def results(run: Run) -> Iterator[Result]:
    """Rows for each model, and its targets; a result after each."""
    args = run.args
    run.record.update(batch=args.batch, compile=args.compile, dtype=args.dtype)
    rows: list[dict[str, Any]] = []
    for name in args.models:
        rows += measure(name, run)
        targets = _targets(rows) if args.batch == 8 and args.image_size in (None, 224) else []
        cells, target_cells = [_cells(r) for r in rows], [_target_cells(r) for r in targets]
        tables = [(BENCHMARK.title, COLUMNS, cells)] + ([("Targets", TARGET_COLUMNS, target_cells)] if targets else [])
        plot = ("plot_end_to_end", [r | {"name": _title(r, args.models)} for r in rows])
        yield Result({"rows": rows, "targets": targets}, _page(run, cells, target_cells), tables, plot=plot)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--models", nargs="+", default=["deit_small_patch16_224"], help=f"names of timm's, or {', '.join(OTHERS)}"
    )
    parser.add_argument("--only", nargs="+", help="only strategies with one of these words in their name")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--image-size", type=int, help="default: the model's own")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--compile", action="store_true", help="torch.compile all of them")


@torch.inference_mode()
def measure(name: str, run: Run) -> list[dict[str, Any]]:
    """Rows for one model: plain, then attached and ideal for each setting."""
    args, device = run.args, run.device
    model = make(name, args.image_size).to(device, getattr(torch, args.dtype))
    shape = Shape.of(model)
    images = torch.randn(args.batch, 3, *shape.image, device=device, dtype=getattr(torch, args.dtype))
    settings = [s for s in _wanted(args) if not s.select.needs_class_token or shape.has_class_token]
    with ExitStack() as stack:
        calls: dict[str, Call] = {"plain": _call(model, images, args.compile)}
        counts: dict[str, list[int]] = {}
        for setting in settings:
            attached = _twin(model)
            handle = stack.enter_context(tg.attach(attached, setting.select, setting.schedule))
            attached(images)
            counts[setting.name] = handle.trace.counts_worked
            place, opened = setting.select.placement, setting.select.needs_map
            how = {"open_maps": opened, "span": setting.select.around}
            cut = stack.enter_context(ideal(_twin(model), handle.trace.counts_worked, place, **how))
            calls[f"{setting.name} attached"] = _call(attached, images, args.compile)
            calls[f"{setting.name} ideal"] = _call(cut, images, args.compile)
        with progress(run.effort.rounds + 1) as step:
            step(f"{name}: warm-up" + (", compiling" if args.compile else ""))
            timings = interleave(calls, run.effort, tick=lambda: step(f"{name}: round"))
    return _rows(name, shape, settings, counts, timings)


def _wanted(args: argparse.Namespace) -> list[Setting]:
    chosen = [s for s in SETTINGS if any(word.lower() in s.name.lower() for word in args.only or [""])]
    return [s for s in chosen if s in QUICK] if args.quick and not args.only else chosen


def _twin(model: nn.Module) -> nn.Module:
    """Returns a copy that shares the parameters, so it needs no more memory and has the same cache behaviour."""
    return copy.deepcopy(model, {id(p): p for p in model.parameters()})


def _call(model: nn.Module, images: Tensor, compiled: bool) -> Call:
    run = torch.compile(model) if compiled else model
    return lambda: run(images)


def _rows(
    name: str,
    shape: Shape,
    settings: list[Setting],
    counts: dict[str, list[int]],
    timings: dict[str, Timing],
) -> list[dict[str, Any]]:
    plain = timings["plain"]
    full = [shape.patches] * (shape.depth + 1)
    flops = vit_cost(full, **shape.sizes).total.flops
    rows: list[dict[str, Any]] = [
        {"model": name, "name": "plain", "kind": "plain", "counts": full, "gflops": round(flops / 1e9, 3)}
        | timing_fields(plain)
        | ratio_fields("ratio_to_plain", plain.over(plain))
    ]
    for setting in settings:
        attached, floor = timings[f"{setting.name} attached"], timings[f"{setting.name} ideal"]
        cost = vit_cost(counts[setting.name], **shape.sizes, select=setting.select)
        for kind, timing in (("attached", attached), ("ideal", floor)):
            flops = cost.total.flops if kind == "attached" else cost.attention.flops + cost.mlp.flops
            row = {"model": name, "name": setting.name, "kind": kind, "counts": counts[setting.name]}
            row |= {"gflops": round(flops / 1e9, 3)} | timing_fields(timing)
            row |= ratio_fields("ratio_to_plain", timing.over(plain))
            row |= ratio_fields("ratio_to_ideal", timing.over(floor)) if kind == "attached" else {}
            rows.append(row | ratio_fields("speedup", plain.over(timing)))
    return rows


def _targets(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for row in rows:
        for name, ratio, goal, below in TARGETS.get(row["model"], ()):
            if row["name"] != name or row["kind"] != "attached":
                continue
            reached = row[ratio] <= goal if below else row[ratio] >= goal
            target = {
                "target": f"{row['model']}, {name}: {WHAT[ratio]}",
                "goal": f"{'<=' if below else '>='} {goal}",
                "reached": reached,
            }
            found.append(target | {"ratio": row[ratio], "ratio_quartiles": row[f"{ratio}_quartiles"]})
    return found


def _title(row: dict[str, Any], models: list[str]) -> str:
    return row["name"] if len(models) == 1 else f"{row['model']} {row['name']}"


def _cells(row: dict[str, Any]) -> list[str]:
    numbers = f"{row['gflops']:.2f}", f"{row['median_ms']:.1f}", f"{row['iqr_ms']:.1f}"
    ratios = [with_quartiles(row, key, 3) for key in ("ratio_to_plain", "ratio_to_ideal", "speedup")]
    return [row["model"], row["name"], row["kind"], str(row["counts"][-1]), *numbers, *ratios]


def _target_cells(row: dict[str, Any]) -> list[str]:
    return [row["target"], row["goal"], with_quartiles(row, "ratio", 3), "yes" if row["reached"] else "no"]


def _page(run: Run, cells: list[list[str]], targets: list[list[str]]) -> str:
    args = run.args
    head = f"{run.machine}; B={args.batch}, {args.dtype}"
    head += f"{', compiled' if args.compile else ''}; random weights; {run.versions}."
    goals = f"\n## Targets\n\n{markdown(TARGET_COLUMNS, targets)}" if targets else ""
    return f"{head}\n\n{BENCHMARK.notes}\n\n{markdown(COLUMNS, cells)}{goals}"


BENCHMARK = Benchmark(
    "end_to_end",
    "End to end",
    __doc__,
    results,
    Effort(21, 600.0, block=0.0),
    Effort(9, 40.0, block=0.0),
    _options,
    "two strategies, few rounds: under a minute",
)

if __name__ == "__main__":
    BENCHMARK.main()
