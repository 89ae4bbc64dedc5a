"""Dynamic spatial sparsification against its ideal and against the dense model, on ConvNeXt and Swin.

Run: ``python benchmarks/dynamic_spatial.py [--models convnext_tiny swin_tiny_patch4_window7_224] [--threads 1]``

The ideal is the same model with the same slow and fast counts in contiguous rows: no prediction module, no sort, no
gather and no scatter. All run in interleaved rounds in one process; ratios are taken in each round.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from command import Benchmark, Result, Run
from harness import Call, Effort, interleave
from report import markdown, progress, ratio_fields, timing_fields, with_quartiles
from torch import Tensor, nn

import tokengraph as tg
from tokengraph.compat import timm
from tokengraph.spatial import DynamicSpatial

MODELS = ("convnext_tiny", "swin_tiny_patch4_window7_224")
COLUMNS = ("model", "what", "median ms", "IQR ms", "over ideal", "over dense")
GOAL = 1.10


def results(run: Run) -> Iterator[Result]:
    """Rows for each model and what they reach."""
    args = run.args
    run.record.update(batch=args.batch, keep=args.keep)
    rows, targets = [], []
    with torch.inference_mode(), progress(len(args.models)) as step:
        for name in args.models:
            step(name)
            timings = interleave(_calls(name, args, run.device), run.effort)
            dense, ideal = timings["dense"], timings["ideal"]
            for what, timing in timings.items():
                row = {"model": name, "what": what} | timing_fields(timing)
                rows.append(
                    row
                    | ratio_fields("over_ideal", timing.over(ideal))
                    | ratio_fields("over_dense", timing.over(dense))
                )
            for against, goal in (("ideal", f"<= {GOAL}"), ("dense", "< 1")):
                targets.append({"target": f"{name} over {against}", "goal": goal, "ratio": rows[-1][f"over_{against}"]})
    cells = [_cells(row) for row in rows]
    head = f"{run.machine}; 224 px, B={args.batch}, rho={args.keep}; random weights."
    goals = f"Goals: at most {GOAL} times the ideal, and faster than dense."
    page = f"{head}\n\n{BENCHMARK.notes}\n\n{markdown(COLUMNS, cells)}\n{goals}\n"
    yield Result({"rows": rows, "targets": targets}, page, [(BENCHMARK.title, COLUMNS, cells)])


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", nargs="+", default=MODELS, help=f"timm names; default: {' '.join(MODELS)}")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--keep", type=float, default=0.7, help="rho; shares are rho, rho - .2, rho - .4")


def _calls(name: str, args: argparse.Namespace, device: torch.device) -> dict[str, Call]:
    """Makes the dense model, its ideal and the attached one, as three models with the same weights."""
    models = []
    for _ in range(3):
        torch.manual_seed(0)
        models.append(timm.create_model(name, pretrained=False).to(device).eval())
    images = torch.randn(args.batch, 3, 224, 224, device=device)
    dense, ideal, ours = models
    tg.attach(ours, DynamicSpatial(args.keep))
    make_ideal(ideal, args.keep)
    return {"dense": lambda: dense(images), "ideal": lambda: ideal(images), "DynamicSpatial": lambda: ours(images)}


def make_ideal(model: nn.Module, keep: float) -> None:
    """Attaches and bypasses the decisions: the first rows of the batch are slow, the others fast."""
    select = tg.attach(model, DynamicSpatial(keep)).select
    stage = (model.stages if hasattr(model, "stages") else model.layers)[2]  # type: ignore[union-attr,index]

    def forward(x: Tensor) -> Tensor:
        x, slow = stage.downsample(x), 0
        for index, block in enumerate(stage.blocks):
            if index < select.layers[0]:
                x = block(x)
                continue
            mixed, base = block.mix(x)
            mixed, base = block.last(mixed), block.last(x if base is None else base)
            if index in select.layers:
                share = select.ratios[select.layers.index(index)]
                slow = len(mixed) * int(mixed.size(1) * mixed.size(2) * share)
            rows = mixed.flatten(0, 2)
            update = torch.cat([block.slow(rows[:slow]), block.fast(rows[slow:])])
            x = block.native(base + update.view(base.shape))
        return x

    stage.forward = forward


def _cells(row: dict) -> list[str]:
    numbers = [f"{row['median_ms']:.1f}", f"{row['iqr_ms']:.1f}"]
    return [
        row["model"],
        row["what"],
        *numbers,
        with_quartiles(row, "over_ideal", 3),
        with_quartiles(row, "over_dense", 3),
    ]


BENCHMARK = Benchmark(
    "dynamic_spatial", "Dynamic spatial sparsification", __doc__, results, Effort(15, 120.0), Effort(5, 60.0), _options
)

if __name__ == "__main__":
    BENCHMARK.main()
