"""Times each stage of merging tokens: as graph operations, and as the dense form that published codes use.

Run: ``python benchmarks/merge_cost.py [--quick] [--device cuda] [--shapes 8x196x384 1x4096x768]``

Stages: ``build`` makes only a graph; ``select`` computes the map from features, with the distances that it needs;
``reduce`` is the size-weighted pooling; ``lift`` expands rows again. All forms of a stage run in interleaved rounds in
one process; ratios are taken in each round.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from command import Benchmark, Result, Run
from harness import Effort, interleave, peak_memory
from merge_cases import STAGES, Case, Problem, cases
from merge_targets import TARGETS
from report import (
    markdown,
    progress,
    ratio_fields,
    timing_fields,
    with_quartiles,
)

SHAPES = ("8x196x384", "1x1024x768", "4x1024x1024", "1x4096x768")
QUICK = ("8x196x384", "1x1024x768")
PLOTTED = ("", "torch", "auto")  # variants that the plot shows: one a form, and nothing that is built once
COLUMNS = ("method", "stage", "B x N x C", "keep", "form", "median ms", "IQR ms", "peak MiB", "dense / this")
TARGET_COLUMNS = ("target", "B x N x C", "goal", "ratio [quartiles]", "reached")


def results(run: Run) -> Iterator[Result]:
    """Rows for each stage of each method, and the targets."""
    args = run.args
    shapes = [_shape(s) for s in args.shapes or (QUICK if args.quick else SHAPES)]
    with torch.no_grad():
        rows, skipped = _stages(shapes, run.device, run.effort)
        targets = [] if args.no_targets else _targets(run.device, run.effort)
    cells, target_cells = [_cells(r) for r in rows], [_target_cells(r) for r in targets]
    yield Result(
        {"rows": rows, "targets": targets, "skipped": skipped},
        _page(run, cells, target_cells, skipped),
        [(BENCHMARK.title, COLUMNS, cells), ("Targets", TARGET_COLUMNS, target_cells)],
        [f"Skipped {method}: {reason}" for method, reason in skipped.items()],
        ("plot_stage_costs", [r for r in rows if r["variant"] in PLOTTED]),
    )


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shapes", nargs="+", metavar="BxNxC", help=f"N a square; default: {' '.join(SHAPES)}")
    parser.add_argument("--no-targets", action="store_true", help="leave out the section of targets")


def _shape(text: str) -> tuple[int, int, int]:
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(p.isdigit() for p in parts):
        raise SystemExit(f"Expected a shape as BxNxC, for example 8x196x384 (got {text!r}).")
    images, tokens, channels = map(int, parts)
    return images, tokens, channels


def _stages(
    shapes: list[tuple[int, int, int]], device: torch.device, effort: Effort
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    problems = [Problem.random(shape, device) for shape in shapes]
    found = [(p, case) for p in problems for case in cases(p)]
    rows: list[dict[str, Any]] = []
    with progress(len(found)) as step:
        for problem, case in found:
            shape = "x".join(map(str, problem.x.shape))
            step(f"{shape} {case.method} {case.stage}")
            rows += _measure(case, shape, device, effort)
    return rows, {name: why for p in problems for name, why in p.skipped.items()}


def _measure(case: Case, shape: str, device: torch.device, effort: Effort) -> list[dict[str, Any]]:
    names = {" ".join(key).strip(): key for key in case.forms}
    calls = {name: case.forms[key] for name, key in names.items()}
    timings = interleave(calls, effort)
    against = next((name for name, (form, _) in names.items() if form == "dense"), None)
    rows = []
    for name, (form, variant) in names.items():
        row: dict[str, Any] = {"method": case.method, "stage": case.stage, "shape": shape, "keep": case.keep}
        row |= {"form": form, "variant": variant} | timing_fields(timings[name])
        row["peak_mib"] = round(peak_memory(calls[name], device) / 2**20, 3)
        if against is not None and form == "graph":
            row |= ratio_fields("speedup", timings[against].over(timings[name]))
        rows.append(row)
    return rows


def _targets(device: torch.device, effort: Effort) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with progress(len(TARGETS)) as step:
        for target in TARGETS:
            step(f"target: {target.name}")
            rows += target.measure(device, effort)
    return rows


def _cells(row: dict[str, Any]) -> list[str]:
    form = f"{row['form']} ({row['variant']})" if row["variant"] else row["form"]
    numbers = f"{row['median_ms']:.3f}", f"{row['iqr_ms']:.3f}", f"{row['peak_mib']:.2f}"
    keep = "" if row["stage"] == "build" else str(row["keep"])
    return [row["method"], row["stage"], row["shape"], keep, form, *numbers, with_quartiles(row, "speedup")]


def _target_cells(row: dict[str, Any]) -> list[str]:
    reached = "yes" if row["reached"] else "no"
    return [row["target"], row["shape"], row["goal"], with_quartiles(row, "ratio", 3), reached]


def _page(run: Run, cells: list[list[str]], targets: list[list[str]], skipped: dict[str, str]) -> str:
    skips = "".join(f"\nSkipped {method}: {reason}\n" for method, reason in skipped.items())
    stages = f"\n## Stages ({', '.join(STAGES)})\n\n{BENCHMARK.notes}\n"
    targets_part = f"\n## Targets\n\n{markdown(TARGET_COLUMNS, targets)}" if targets else ""
    return f"{run.machine}; {run.versions}.\n{stages}\n{markdown(COLUMNS, cells)}{skips}{targets_part}"


BENCHMARK = Benchmark(
    "merge_cost",
    "Merge cost",
    __doc__,
    results,
    Effort(21, 8.0),
    Effort(7, 0.3),
    _options,
    "two shapes, few rounds: under a minute",
)

if __name__ == "__main__":
    BENCHMARK.main()
