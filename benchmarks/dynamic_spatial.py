"""Dynamic spatial sparsification against its ideal and against the dense model, on ConvNeXt and Swin.

Run: ``python benchmarks/dynamic_spatial.py [--models convnext_tiny swin_tiny_patch4_window7_224] [--threads 1]``

The ideal is the same model with the same slow and fast counts in contiguous rows: no prediction module, no sort, no
gather and no scatter. All run in interleaved rounds in one process; ratios are taken in each round.
"""

from __future__ import annotations

import argparse

import torch
from harness import Call, Effort, environment, interleave, warn_if_busy
from report import add_out, markdown, out_file, progress, ratio_fields, show, timing_fields, with_quartiles, write_json
from torch import Tensor, nn

import tokengraph as tg
from tokengraph.compat import timm
from tokengraph.spatial import DynamicSpatial

MODELS = ("convnext_tiny", "swin_tiny_patch4_window7_224")
COLUMNS = ("model", "what", "median ms", "IQR ms", "over ideal", "over dense")
GOAL = 1.10


def main() -> None:
    """Runs the benchmark and writes ``dynamic_spatial.json`` and ``.md``."""
    args = _arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    record = environment(device) | {"batch": args.batch, "keep": args.keep}
    warn_if_busy()
    rows, targets = [], []
    effort = Effort(5, 60.0) if args.quick else Effort(args.rounds, args.seconds)
    with torch.inference_mode(), progress(len(args.models)) as step:
        for name in args.models:
            step(name)
            timings = interleave(_calls(name, args, device), effort)
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
    where = out_file(args.out, "dynamic_spatial", device)
    write_json(where, {"environment": record, "rows": rows, "targets": targets})
    cells = [_cells(row) for row in rows]
    head = f"{record['device_name']}, {record['threads']} threads; 224 px, B={args.batch}, rho={args.keep}; "
    head += "random weights."
    notes = (__doc__ or "").split("\n\n", 2)[2].strip()
    goals = f"Goals: at most {GOAL} times the ideal, and faster than dense."
    page = f"# Dynamic spatial sparsification\n\n{head}\n\n{notes}\n\n{markdown(COLUMNS, cells)}\n{goals}\n"
    where.with_suffix(".md").write_text(page, encoding="utf-8")
    show("Dynamic spatial sparsification", COLUMNS, cells)
    print(f"Written: {where}, and .md beside it")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument("--models", nargs="+", default=MODELS, help=f"timm names; default: {' '.join(MODELS)}")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--keep", type=float, default=0.7, help="rho; shares are rho, rho - .2, rho - .4")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=120.0, help="about how long a model may take")
    parser.add_argument("--threads", type=int, help="CPU threads; default: all that torch takes")
    add_out(parser, "dynamic_spatial")
    return parser.parse_args()


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


if __name__ == "__main__":
    main()
