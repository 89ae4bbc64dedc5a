"""Cold compile time of a model: plain, its ideal, attached as a whole, and attached with its blocks compiled once.

Run: ``python benchmarks/compiling.py [--quick] [--only attached ...] [--speed ideal "attached, blocks" ...]``

Each case runs in a process of its own with an empty cache of inductor, which compiles one kernel after another. The
first run is timed: seconds of the clock, and of processors, compilers included, which other processes on the machine
disturb less. Then a process with dynamo alone counts the graphs that other batch and image sizes compile. The strategy
is ToMe with r = 13, at other image sizes by the same share. ``--speed`` times runs of these cases in interleaved rounds
of one process, against the attached model that is not compiled; it compiles them once more.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from command import Benchmark, Result, Run
from harness import Effort, interleave
from report import markdown, progress, ratio_fields, timing_fields, with_quartiles
from torch import Tensor, nn
from torch._dynamo.utils import counters

import tokengraph as tg
from tokengraph.compat import timm
from tokengraph.testing.ideal import ideal

MODEL, SHARE = "deit_small_patch16_224", 13 / 196
CASES = ("ideal", "attached, blocks", "attached", "plain, blocks", "plain")
SHAPES = {"first": (8, 224), "batch of 5": (5, 224), "batch of 2": (2, 224), "one image": (1, 224)}
SHAPES |= {"160 px": (8, 160), "160 px, batch of 3": (3, 160), "192 px": (8, 192)}
COLUMNS = ("case", "cold, s", "of processors, s", "over ideal", *(f"graphs, {name}" for name in SHAPES))
SPEED = ("case", "median ms", "over attached, not compiled [quartiles]")
EAGER = "attached, not compiled"


def build(case: str, stack: ExitStack, model: nn.Module, backend: str) -> Callable[[Tensor], object]:
    """Returns the compiled call of a case."""
    if case.startswith("attached"):
        handle = stack.enter_context(tg.attach(model, "tome", _removed))
        if case == "attached":
            return torch.compile(model, backend=backend)
        tg.compile_blocks(handle, backend=backend)
        return model
    if case == "ideal":
        counts = tg.schedule.tokens_per_layer(_removed, len(model.blocks), 196)  # type: ignore[arg-type]
        stack.enter_context(ideal(model, counts))
        return torch.compile(model, backend=backend)
    if case == "plain":
        return torch.compile(model, backend=backend)
    for block in model.blocks:  # type: ignore[union-attr]
        block.compile(backend=backend, dynamic=True)
    return model


def _removed(depth: int, tokens: int) -> list[int]:
    """Tokens that leave in each block, by the share of r = 13 of 196."""
    return [round(SHARE * tokens)] * depth


def child(case: str, backend: str, threads: int) -> None:
    """Runs one case, by inductor once, else on every shape, and prints seconds and graphs as JSON."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = timm.create_model(MODEL, dynamic_img_size=True).eval()
    found: dict[str, Any] = {}
    with ExitStack() as stack, torch.inference_mode():
        call = build(case, stack, model, backend)
        for name, (count, side) in SHAPES.items():
            if case == "ideal" and side != 224:  # it has one number of tokens
                continue
            images, before = torch.randn(count, 3, side, side), counters["stats"]["unique_graphs"]
            clock, spent = perf_counter(), sum(os.times()[:4])
            call(images)
            if backend == "inductor":
                found = {"cold": round(perf_counter() - clock, 2), "processors": round(sum(os.times()[:4]) - spent, 2)}
                break
            found[name] = counters["stats"]["unique_graphs"] - before
    print(json.dumps(found))


def results(run: Run) -> Iterator[Result]:
    """A row for each case, then the speed of all."""
    args = run.args
    backend = "eager" if args.quick else "inductor"
    chosen = [case for case in CASES if args.only is None or case in args.only]
    rows: list[dict[str, Any]] = []
    speed: list[dict[str, Any]] = []
    with progress(len(chosen) + bool(args.speed)) as step:
        for case in chosen:
            step(case)
            seconds = {} if args.quick else _measured(case, "inductor")
            rows.append({"case": case} | seconds | {"graphs": _measured(case, "eager")})
            yield _result(run, backend, rows, speed)
        if args.speed:
            step("speed")
            speed = list(speeds(run, backend))
            yield _result(run, backend, rows, speed)


def _measured(case: str, backend: str) -> dict[str, Any]:
    """Runs a case in a process of its own, with an empty cache."""
    code = f"import compiling; compiling.child({case!r}, {backend!r}, {torch.get_num_threads()})"
    with tempfile.TemporaryDirectory() as cache:
        out = subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parent,
            env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache, "TORCHINDUCTOR_COMPILE_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    return json.loads(out.strip().splitlines()[-1])


def speeds(run: Run, backend: str) -> Iterator[dict[str, Any]]:
    """Times cases and the attached model that is not compiled in turns."""
    torch.manual_seed(0)
    model = timm.create_model(MODEL).eval()
    images = torch.randn(8, 3, 224, 224)
    with ExitStack() as stack, torch.inference_mode():
        calls = {}
        for case in run.args.speed:
            made = build(case, stack, copy.deepcopy(model), backend)
            calls[case] = lambda made=made: made(images)
        eager = copy.deepcopy(model)
        stack.enter_context(tg.attach(eager, "tome", _removed))
        calls[EAGER] = lambda: eager(images)
        timings = interleave(calls, run.effort)
    for case, timing in timings.items():
        yield {"case": case} | timing_fields(timing) | ratio_fields("over_eager", timing.over(timings[EAGER]))


def _result(run: Run, backend: str, rows: list[dict[str, Any]], speed: list[dict[str, Any]]) -> Result:
    floor = next((row.get("processors") for row in rows if row["case"] == "ideal"), None)
    cells = []
    for row in rows:
        known = "processors" in row
        seconds = [f"{row[key]:.1f}" if known else "" for key in ("cold", "processors")]
        over = f"{row['processors'] / floor:.2f}" if known and floor else ""
        cells.append([row["case"], *seconds, over, *(str(row["graphs"].get(name, "")) for name in SHAPES)])
    speed_cells = [[row["case"], f"{row['median_ms']:.1f}", with_quartiles(row, "over_eager", 3)] for row in speed]
    page = f"{run.machine}; {run.versions}. {MODEL}, B = 8, {backend}.\n\n{BENCHMARK.notes}\n\n"
    page += markdown(COLUMNS, cells)
    tables = [(BENCHMARK.title, COLUMNS, cells)]
    if speed:
        page += f"\n## Speed\n\n{markdown(SPEED, speed_cells)}"
        tables.append(("Speed", SPEED, speed_cells))
    return Result({"backend": backend, "rows": rows, "speed": speed}, page, tables)  # type: ignore[arg-type]


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="*", choices=CASES, help="only these cases")
    parser.add_argument("--speed", nargs="+", choices=CASES, default=[], help="also times runs of these cases")


BENCHMARK = Benchmark(
    "compiling", "Compiling", __doc__, results, Effort(9, 120.0, 0.0), Effort(3, 10.0, 0.0), _options, "graphs alone"
)

if __name__ == "__main__":
    BENCHMARK.main()
