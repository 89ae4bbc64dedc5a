"""Peak memory and time of choosing among many tokens of one image, within the memory budget and linearly.

Run: ``python benchmarks/scale.py [--quick] [--side 256] [--only tome] [--budget 256]``

Features are random, on a square grid of ``side * side`` patches. Methods that look at all pairs work in row blocks
within :func:`tokengraph.set_memory_budget`; methods within windows need no budget. Time is that of choosing alone, of
the call whose memory is measured, or of a second one that takes less if the first takes less than ten seconds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from command import Benchmark, Result, Run
from harness import Effort, peak_memory
from report import markdown, progress
from torch import Tensor

import tokengraph as tg

COLUMNS = ("method", "features", "grows as", "peak MiB", "seconds", "microseconds a token")


def methods(side: int, device: torch.device) -> dict[str, tuple[str, Tensor, Callable[[], object]]]:
    """What is measured, by name: how it grows, its features, and the call."""
    tokens, grid = side * side, (side, side)
    draw = torch.Generator().manual_seed(0)
    keys = torch.randn(1, tokens, 64, generator=draw).to(device)
    half, quarter = tokens // 2, tokens // 4
    low = (max(side // 2, 1), max(side // 2, 1))
    return {
        "tome": ("N^2", keys, lambda: tg.tome(keys, half, num_prefix=1)),
        "pitome": ("N^2", keys, lambda: tg.pitome(keys, half, margin=0.5)),
        "dpc-knn": ("N^2", keys, lambda: tg.dpc_knn(keys, quarter)),
        "knn, k = 8": ("N^2", keys, lambda: tg.knn_graph(keys, 8)),
        "gtp's graph, semantic": ("N^2", keys, lambda: tg.propagation_graph(keys, graph="semantic")),
        "local knn, k = 8": ("N", keys, lambda: tg.local_knn_graph(keys, grid, 8)),
        "dpc-knn, window of 50": ("N", keys, lambda: tg.dpc_knn(keys, quarter, grid=grid, window=50)),
        "gtp's graph, local": ("N", keys, lambda: tg.propagation_graph(keys, grid, graph="local")),
        "gtp's graph, spatial": ("N", keys, lambda: tg.propagation_graph(keys, grid, graph="spatial")),
        "ailurus": ("N", keys, lambda: tg.ailurus(keys, quarter, grid)),
        "expedite": ("N", keys, lambda: tg.expedite(keys, grid, low)),
    }


def results(run: Run) -> Iterator[Result]:
    """One row for each method."""
    args, rows = run.args, []
    side = args.side or (64 if args.quick else 256)
    chosen = {n: m for n, m in methods(side, run.device).items() if not args.only or any(w in n for w in args.only)}
    with progress(len(chosen)) as step, torch.no_grad(), tg.set_memory_budget(args.budget * 2**20):
        for name, (grows, x, call) in chosen.items():
            step(name)
            rows.append(measure(name, grows, x, call, run.device))
            cells = [_cells(row) for row in rows]
            page = f"{run.machine}; {run.versions}. Budget {args.budget} MiB.\n\n{markdown(COLUMNS, cells)}\n"
            content = {"side": side, "budget_mib": args.budget, "rows": rows}
            yield Result(content, page + f"{BENCHMARK.notes}\n", [(BENCHMARK.title, COLUMNS, cells)])


def measure(name: str, grows: str, x: Tensor, call: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """Calls a method for its memory and its time."""

    spent: list[float] = []

    def timed() -> None:
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        spent.append(time.perf_counter() - start)

    peak = peak_memory(timed, device) / 2**20
    if spent[0] < 10:
        timed()
    seconds = min(spent)
    row = {"method": name, "shape": "x".join(map(str, x.shape)), "grows": grows, "peak_mib": round(peak, 1)}
    return row | {"seconds": round(seconds, 3), "us_a_token": round(1e6 * seconds / x.size(1), 2)}


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        row["method"],
        row["shape"],
        row["grows"],
        f"{row['peak_mib']:.0f}",
        f"{row['seconds']:.2f}",
        f"{row['us_a_token']:g}",
    ]


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--side", type=int, help="of the grid; default 256, 64 with --quick")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="methods whose names have one of these words")
    parser.add_argument("--budget", type=int, default=256, help="MiB of the largest block")


BENCHMARK = Benchmark(
    "scale",
    "Many tokens of one image",
    __doc__,
    results,
    Effort(1, 1.0),
    Effort(1, 1.0),
    _options,
    "a grid of 64 x 64",
)

if __name__ == "__main__":
    BENCHMARK.main()
