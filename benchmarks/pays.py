"""Where token reduction does not pay: the smallest sequence at which a strategy saves time.

Run: ``python benchmarks/pays.py [--quick] [--sizes tiny small] [--batches 1 8] [--thread-counts 1 2] [--again]``

Models are timm's DeiT with random weights, by size, image size, batch and threads. Images grow until every strategy
saves 3 % of the plain model's time at two sizes in a row, or a plain run takes longer than a second. All strategies and
the plain model run in interleaved rounds; schedules keep their shares at other image sizes. Rows that the file has
already are kept, so that a run that was stopped goes on; ``--again`` measures all of them anew.
``tg.plan(..., pays=FILE)`` reads the file.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
from command import Benchmark, Result, Run
from harness import Effort, interleave
from report import markdown, out_file, progress, ratio_fields
from torch import nn

import tokengraph as tg
from tokengraph.compat import timm
from tokengraph.planning.pays import PAYS, smallest_paying, table_of

PIXELS = (64, 96, 128, 160, 192, 224, 288, 384)
LONGEST = 1000.0  # milliseconds of a plain run: larger images are not measured
SIZES = ("tiny", "small", "base")
THREE = tg.schedule.relative({3: 0.7, 6: 0.7, 9: 0.7})
STRATEGIES = {  # strategy: its schedule for N patch tokens, in words and as such
    "tome": ("13 / 196 in each block", lambda n: round(n * 13 / 196)),
    "dpc-knn": ("50 % after 2", lambda n: {2: 0.5}),
    "ailurus": ("50 % after 2", lambda n: {2: 0.5}),
    "topk": ("70 % after 3, 6, 9", lambda n: THREE),
    "gtp": ("8 / 196 in each block", lambda n: max(1, round(n * 8 / 196))),
    "random": ("50 % after 2", lambda n: {2: 0.5}),
}
Case = tuple[str, int, int]  # size, batch, threads


def results(run: Run) -> Iterator[Result]:
    """Rows for each case, image size and strategy; a result after each case."""
    args = run.args
    sizes, pixels = (("tiny",), PIXELS[:2]) if args.quick else (args.sizes, PIXELS)
    rows = [] if args.again else _known(run)
    before = torch.get_num_threads()
    cases = [(size, batch, threads) for threads in args.thread_counts for size in sizes for batch in args.batches]
    try:
        with progress(len(cases)) as step, torch.inference_mode():
            for case in cases:
                step("deit_{}, batch {}, threads {}".format(*case))
                torch.set_num_threads(case[2])
                for new in measure(case, pixels, rows, run):
                    rows += new
                    yield _result(run, rows)
    finally:
        torch.set_num_threads(before)
    yield _result(run, rows)


def measure(case: Case, pixels: tuple[int, ...], known: list[dict[str, Any]], run: Run) -> Iterator[list[dict]]:
    """Rows of a case at one image size after another, without those that are known."""
    done = 0
    for px in pixels:
        found = [row for row in known if _case(row) == case and row["px"] == px]
        if not found:
            found = _at(case, px, run)
            yield found
        done = done + 1 if all(row["ratio"] * PAYS <= 1 for row in found) else 0
        if done == 2 or found[0]["plain_ms"] > LONGEST:
            return


def _at(case: Case, px: int, run: Run) -> list[dict[str, Any]]:
    """Rows of one case at one image size."""
    size, batch, threads = case
    torch.manual_seed(0)
    model = timm.create_model(f"deit_{size}_patch16_224", img_size=px).eval().to(run.device)
    images = torch.randn(batch, 3, px, px, generator=torch.Generator().manual_seed(0)).to(run.device)
    tokens = (px // 16) ** 2
    calls = {"plain": lambda: model(images)}
    with ExitStack() as stack:
        for name, (_, schedule) in STRATEGIES.items():
            ours = _twin(model)
            stack.enter_context(tg.attach(ours, name, schedule(tokens)))
            calls[name] = lambda ours=ours: ours(images)
        timings = interleave(calls, run.effort)
    return [
        {"strategy": name, "model": f"deit_{size}", "channels": model.embed_dim, "batch": batch, "threads": threads}
        | {"px": px, "tokens": tokens, "schedule": words, "plain_ms": round(timings["plain"].ms.median, 3)}
        | ratio_fields("ratio", timings[name].over(timings["plain"]))
        for name, (words, _) in STRATEGIES.items()
    ]


def _twin(model: nn.Module) -> nn.Module:
    """Returns a copy that shares the parameters."""
    return copy.deepcopy(model, {id(p): p for p in model.parameters()})


def _case(row: dict[str, Any]) -> Case:
    return row["model"].removeprefix("deit_"), row["batch"], row["threads"]


def _known(run: Run) -> list[dict[str, Any]]:
    """Rows of the file that a run before wrote, on the same device."""
    where = out_file(run.args.out, BENCHMARK.name, run.device)
    if not where.exists():
        return []
    found = json.loads(where.read_text(encoding="utf-8"))
    same = found["environment"]["device_name"] == run.record["device_name"]
    return found["rows"] if same else []


def _result(run: Run, rows: list[dict[str, Any]]) -> Result:
    columns = ("model", "batch", "threads", *STRATEGIES, "largest measured")
    cells = []
    for case in dict.fromkeys(map(_case, rows)):
        own = [row for row in rows if _case(row) == case]
        most = max(row["tokens"] for row in own)
        line = [f"deit_{case[0]}", str(case[1]), str(case[2])]
        for name in STRATEGIES:
            first = smallest_paying(table_of([row for row in own if row["strategy"] == name]))
            line.append(f"> {most}" if first is None else str(first))
        cells.append([*line, str(most)])
    schedules = ", ".join(f"{name} {words}" for name, (words, _) in STRATEGIES.items())
    clock = "; processor time" if run.record.get("clock") == "processor" else ""
    page = f"{run.record['device_name']}{clock}; {run.versions}.\n\n{BENCHMARK.notes}\n\nPatch tokens from which on "
    page += f"each strategy saves 3 % or more. Schedules: {schedules}.\n\n{markdown(columns, cells)}"
    return Result({"rows": rows}, page, [(BENCHMARK.title, columns, cells)])


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=SIZES)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--thread-counts", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--again", action="store_true", help="measure rows that the file has, too")


BENCHMARK = Benchmark(
    "pays",
    "Where token reduction pays",
    __doc__,
    results,
    Effort(7, 8.0, 0.0),
    Effort(3, 2.0, 0.0),
    _options,
    "deit_tiny at two image sizes",
)

if __name__ == "__main__":
    BENCHMARK.main()
