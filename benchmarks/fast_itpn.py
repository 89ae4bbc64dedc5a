"""Fast-iTPN with token migration and token gathering against the plain backbone, and their parts against a block.

Run: ``python benchmarks/fast_itpn.py [--size tiny] [--pixels 512] [--quick] [--threads 1] [--device cuda]``

Migration and gathering are after Fast-iTPN; the authors published no code for them, so these are times of this
project's own definition, not of the paper. Weights are random. All run in interleaved rounds in one process; ratios are
taken in each round.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from command import Benchmark, Result, Run
from harness import Call, Effort, interleave
from report import markdown, progress, ratio_fields, timing_fields, with_quartiles

from tokengraph.models import FastITPN, TokenGathering, TokenMigration
from tokengraph.models.fast_itpn import CONFIGS
from tokengraph.models.gathering import full_attention, gathering_attention, make_windows
from tokengraph.select.migration.redundancy import pick_redundant, tokens_to_drop

COLUMNS = ("what", "median ms", "IQR ms", "against", "this / that", "goal")
# What is timed, the baseline, and the largest ratio of times allowed: for one image of 512 pixels, size tiny.
NETWORKS = {
    "plain backbone": None,
    "migration 0.7^3": ("plain backbone", 0.70),
    "gathering": ("plain backbone", None),
    "migration and gathering": ("plain backbone", 0.58),
    "stem": ("plain backbone", None),
}
PARTS = {
    "main block": None,
    "selection": ("main block", 0.03),
    "full attention": ("main block", None),
    "gathering attention": ("full attention", 0.35),
    "gathering attention, uneven windows": ("full attention", None),
}


def results(run: Run) -> Iterator[Result]:
    """Rows for the networks and for their parts."""
    args = run.args
    run.record.update(size=args.size, pixels=args.pixels, batch=args.batch)
    rows: list[dict[str, Any]] = []
    with torch.inference_mode(), progress(2) as step:
        for name, table, calls in (("networks", NETWORKS, _networks), ("parts", PARTS, _parts)):
            step(name)
            rows += _measure(calls(args, run.device), table, run.effort)
    if (args.size, args.pixels, args.batch) != ("tiny", 512, 1):
        rows = [{key: value for key, value in row.items() if key != "goal"} for row in rows]
    cells = [_cells(row) for row in rows]
    options = f"Size {args.size}, {args.pixels} px, {args.batch} image(s), float32."
    page = f"{run.machine}; {run.versions}.\n\n{BENCHMARK.notes}\n\n{options}\n\n{markdown(COLUMNS, cells)}"
    yield Result({"rows": rows}, page, [(BENCHMARK.title, COLUMNS, cells)])


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", default="tiny", choices=list(CONFIGS))
    parser.add_argument("--pixels", type=int, default=512, help="side of the images, default 512")
    parser.add_argument("--batch", type=int, default=1)


def _networks(args: argparse.Namespace, device: torch.device) -> dict[str, Call]:
    images = torch.randn(args.batch, 3, args.pixels, args.pixels, generator=_seed()).to(device)
    migration, gathering = TokenMigration(), TokenGathering()
    options = [{}, {"migration": migration}, {"gathering": gathering}, {"migration": migration, "gathering": gathering}]
    calls: dict[str, Call] = {}
    for name, option in zip(NETWORKS, options, strict=False):
        torch.manual_seed(0)
        model = FastITPN(*CONFIGS[args.size], img_size=args.pixels, **option).eval().to(device)
        calls[name] = lambda model=model: model(images)
    return calls | {"stem": lambda: model.forward_stem(images)}


def _parts(args: argparse.Namespace, device: torch.device) -> dict[str, Call]:
    width, _, heads = CONFIGS[args.size]
    side, hubs = args.pixels // 16, 4
    block = FastITPN(width, (0, 0, 1), heads, img_size=16).main_blocks[0].eval().to(device)
    x = torch.randn(args.batch, side * side, width, generator=_seed()).to(device)
    shape = (3, args.batch, side * side + hubs, heads, width // heads)
    nodes = torch.randn(shape, generator=_seed()).to(device)
    q, k, v = nodes[:, :, hubs:].contiguous()
    window = TokenGathering().window_on((side, side)) or (side, side)
    even = make_windows((side, side), window, device=device)
    ids = torch.arange(side * side, device=device).expand(args.batch, -1)
    uneven = make_windows((side, side), window, ids)
    removed = tokens_to_drop(side * side, 0.7)
    return {
        "main block": lambda: block(x),
        "selection": lambda: pick_redundant(k, removed),
        "full attention": lambda: full_attention(q, k, v),
        "gathering attention": lambda: gathering_attention(*nodes, even),
        "gathering attention, uneven windows": lambda: gathering_attention(*nodes, uneven),
    }


def _seed() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _measure(calls: dict[str, Call], table: dict[str, Any], effort: Effort) -> list[dict[str, Any]]:
    timings = interleave(calls, effort)
    rows = []
    for name, timing in timings.items():
        row: dict[str, Any] = {"what": name} | timing_fields(timing)
        if table[name] is not None:
            against, goal = table[name]
            row |= {"against": against, "goal": goal} | ratio_fields("ratio", timing.over(timings[against]))
        rows.append(row)
    return rows


def _cells(row: dict[str, Any]) -> list[str]:
    goal = "" if row.get("goal") is None else f"at most {row['goal']:.2f}"
    times = [f"{row['median_ms']:.2f}", f"{row['iqr_ms']:.2f}"]
    return [row["what"], *times, row.get("against", ""), with_quartiles(row, "ratio", 3), goal]


BENCHMARK = Benchmark("fast_itpn", "Fast-iTPN", __doc__, results, Effort(15, 60.0), Effort(5, 20.0), _options)

if __name__ == "__main__":
    BENCHMARK.main()
