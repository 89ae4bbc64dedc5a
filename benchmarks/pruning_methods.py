"""Attached pruning and holding methods over their ideals and over the dense model, at published settings.

Run: ``python benchmarks/pruning_methods.py [--quick] [--only evit ats] [--batch 8] [--threads 1]``

The model is timm's deit_small_patch16_224 with random weights and images. An ideal is the same model run on the same
numbers of tokens without any choice (:func:`tokengraph.testing.ideal`), around blocks for methods whose tokens idle;
attached model, ideal and dense model take turns, and ratios are taken in each round. Launches a step are as in
methods.py. Random weights decide how many tokens ATS, SViT and A-ViT keep, and differently than trained ones would: no
token of an untrained model halts at A-ViT's published settings, so a second row centres its scores on zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from command import Benchmark, Result, Run
from harness import Effort
from over_ideal import Method, add_options, measure_all, shown_counts
from report import markdown, with_quartiles

import tokengraph as tg

COLUMNS = (
    "method", "tokens an image worked on", "attached ms", "attached / ideal [quartiles]", "goal",
    "attached / dense [quartiles]", "launches a step",
)  # fmt: skip
LEFT = (196, 193, 175, 155, 140, 132, 120, 106, 87, 63, 55, 2)  # DiffRate's published counts for 2.9 GMACs
DROPPED = [min((a + b + 1) // 2, 196) + 1 for a, b in zip((196, *LEFT), LEFT, strict=False)]


METHODS = (
    Method("evit", tg.TopK(score="class", fuse=True), tg.schedule.evit(0.7, (3, 6, 9)), goal=1.05),
    Method("diffrate", tg.DiffRate(DROPPED, [n + 1 for n in LEFT], patches=196), goal=1.05),
    Method(
        "diffrate, by similarity",
        tg.DiffRate(DROPPED, [n + 1 for n in LEFT], patches=196, merge_by="similarity"),
        goal=1.05,
    ),
    Method("ppt", tg.PPT(), goal=1.05),
    Method("tps, etps", tg.TPS(variant="etps"), goal=1.05),
    Method("tps, dtps", tg.TPS(), goal=1.05),
    Method("idlevit", tg.IdleViT(), goal=1.10),
    Method("evovit", tg.EvoViT(), goal=1.10),
    Method("ats", tg.ATS(), goal=0),
    Method("a-vit, published (none halts)", tg.AViT.published("small"), goal=0),
    Method("a-vit, centred scores", tg.AViT(10.0, 0.0), goal=0),
    Method("svit", tg.SViT(), goal=0),
)


def results(run: Run) -> Iterator[Result]:
    """A row for each method."""
    rows = measure_all(run, METHODS, dense=True)
    cells = [_cells(row) for row in rows]
    page = f"{run.machine}; {run.versions}. B = {run.args.batch}.\n\n{markdown(COLUMNS, cells)}"
    yield Result({"rows": rows}, page, [(BENCHMARK.title, COLUMNS, cells)])


def _cells(row: dict[str, Any]) -> list[str]:
    goal = f"{row['goal']:g} of ideal" if row["goal"] else "faster than dense"
    ratios = with_quartiles(row, "ratio", 3), with_quartiles(row, "dense", 3)
    return [
        row["method"],
        shown_counts(row["counts"]),
        f"{row['median_ms']:.0f}",
        ratios[0],
        goal,
        ratios[1],
        f"{row['launches']:g}",
    ]


BENCHMARK = Benchmark(
    "pruning_methods",
    "Pruning methods over their ideals",
    __doc__,
    results,
    Effort(15, 40.0),
    Effort(3, 4.0),
    add_options,
    "few rounds: some minutes",
)

if __name__ == "__main__":
    BENCHMARK.main()
