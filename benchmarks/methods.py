"""Attached merging methods over their ideals at published schedules, launches of a step, and memory of 16,384 tokens.

Run: ``python benchmarks/methods.py [--quick] [--only pitome mpm] [--batch 8] [--threads 1] [--no-memory]``

The model is timm's deit_small_patch16_224 with random weights and images. An ideal is the same model run on the same
numbers of tokens without any choice (:func:`tokengraph.testing.ideal`); ratios are taken in each interleaved round.
Launches are counted as :func:`tokengraph.testing.launches` does; a step's are those of the attached model beyond its
ideal's, divided by the number of blocks that act, so choice, reduction and size bias count. Random images decide how
many tokens methods by thresholds keep; their ideals run on the mean.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from command import Benchmark, Result, Run
from harness import Effort, peak_memory
from over_ideal import Method, add_options, measure_all, shown_counts
from report import markdown, with_quartiles
from torch import Tensor

import tokengraph as tg
from tokengraph.select.parts.choices.agglomerate import agglomerate
from tokengraph.select.parts.scores.energy import energy

COLUMNS = ("method", "tokens worked on", "attached ms", "attached / ideal [quartiles]", "goal", "launches a step")
MEMORY_COLUMNS = ("method", "features", "peak MiB", "goal")
POWERS = tg.schedule.powers(0.9, (3, 6, 9))


METHODS = (
    Method("tome", tg.ToMe(), 13, 0),
    Method("pitome", tg.PiToMe.released(), tg.schedule.ratio(0.9125)),
    Method("tofu", tg.ToFu(), tg.schedule.ratio(0.9, prefix=1)),
    Method("mctf", tg.MCTF(), tg.MCTF.published_schedule()),
    Method("mctf, ahead", tg.MCTF(ahead=True), tg.MCTF.published_schedule()),
    Method("mpm", tg.MPM(), None, 1.03),
    Method("g2tm", tg.G2TM(), None, 1.03),
    Method("algm", tg.ALGM(), None),
    Method("atc", tg.ATC(), POWERS, 1.15),
    Method("k-medoids", tg.KMedoids(), POWERS),
    Method("dpc-knn, per layer", tg.DPCKNN.per_layer(), POWERS),
    Method("token-transforming", tg.TokenTransforming(), {4: 0.5}),
    Method("cubist-merge", tg.CubistMerge(), {4: 0.5}),
    Method("grid-tome, around attention", tg.GridToMe.published(), {0: 0.5}),
    Method("toma, 7 x 7 tiles, around both", tg.Around(tg.ToMA(tiles=(7, 7)), "both", sizes=False), {0: 0.5}),
    Method("toma, one region", tg.ToMA(), {4: 0.5}),
    Method("dtem", tg.DTEM(), 16),
)


def results(run: Run) -> Iterator[Result]:
    """Rows for each method, and for memory."""
    args = run.args
    rows = measure_all(run, METHODS, dense=False)
    memory = [] if args.no_memory else list(memories(run.device, args.tokens))
    cells, memory_cells = [_cells(row) for row in rows], [_memory_cells(row) for row in memory]
    page = f"{run.machine}; {run.versions}. B = {args.batch}.\n\n{markdown(COLUMNS, cells)}"
    if memory:
        page += f"\n## Memory of {args.tokens:,} tokens\n\n{markdown(MEMORY_COLUMNS, memory_cells)}"
    tables = [(BENCHMARK.title, COLUMNS, cells), ("Memory", MEMORY_COLUMNS, memory_cells)]
    yield Result({"rows": rows, "memory": memory}, page, tables)


def memories(device: torch.device, tokens: int) -> Iterator[dict[str, Any]]:
    """The peak memory of choosing among many tokens, for methods that look at all pairs or edges."""
    side = math.isqrt(tokens)
    draw = torch.Generator().manual_seed(0)
    keys, rows = (torch.randn(1, side * side, width, generator=draw).to(device) for width in (64, 384))
    unit = torch.nn.functional.normalize(keys, dim=2)
    calls: dict[str, tuple[Tensor, Callable[[], object]]] = {
        "pitome's energy": (keys, lambda: energy(keys, margin=0.5)),
        "mpm": (rows, lambda: tg.mpm(rows)),
        "g2tm": (rows, lambda: tg.connected_components(rows, (side, side), 0.05)),
        "two rounds of atc, average": (keys, lambda: two_rounds(unit, "average")),
        "two rounds of atc, single": (keys, lambda: two_rounds(unit, "single")),
        "two rounds of atc, complete": (keys, lambda: two_rounds(unit, "complete")),
    }
    with torch.no_grad():
        for name, (x, call) in calls.items():
            peak = peak_memory(call, device) / 2**20
            yield {"method": name, "shape": "x".join(map(str, x.shape)), "peak_mib": round(peak, 1)}


def two_rounds(unit: Tensor, linkage: str) -> Tensor:
    """As many merges as two rounds of mutual nearest pairs make, or fewer."""
    return agglomerate(unit, torch.tensor([2], device=unit.device), 2, linkage)


def _options(parser: argparse.ArgumentParser) -> None:
    add_options(parser)
    parser.add_argument("--tokens", type=int, default=16384, help="of the section on memory, a square number")
    parser.add_argument("--no-memory", action="store_true", help="leave out that section")


def _cells(row: dict[str, Any]) -> list[str]:
    goal = f"{row['goal']:g}" if row["goal"] else ""
    return [
        row["method"],
        shown_counts(row["counts"], 4),
        f"{row['median_ms']:.0f}",
        with_quartiles(row, "ratio", 3),
        goal,
        f"{row['launches']:g}",
    ]


def _memory_cells(row: dict[str, Any]) -> list[str]:
    return [row["method"], row["shape"], f"{row['peak_mib']:.0f}", "1024"]


BENCHMARK = Benchmark(
    "methods",
    "Merging methods over their ideals",
    __doc__,
    results,
    Effort(15, 40.0),
    Effort(3, 4.0),
    _options,
    "few rounds: some minutes",
)

if __name__ == "__main__":
    BENCHMARK.main()
