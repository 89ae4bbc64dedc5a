"""Expedite in the windows of a SAM-style ViT: the cost of clustering and reconstruction, and the time they save.

Run: ``python benchmarks/windows.py [--size 1024] [--clusters 9] [--before 4] [--threads 1]``

It times the blocks from ``before`` on: stock, on the map of clusters alone (the ideal, without clustering and
reconstruction), and attached. The goal is that clustering and reconstruction take at most a quarter of the time that
the ideal saves over the stock blocks. Weights are random, as time does not depend on them. All run in interleaved
rounds in one process; ratios are taken in each round.
"""

from __future__ import annotations

import argparse
import copy

import torch
from harness import Call, Effort, Summary, Timing, environment, interleave, warn_if_busy
from report import add_out, markdown, out_file, ratio_fields, show, timing_fields, with_quartiles, write_json
from torch import Tensor

import tokengraph as tg
from tokengraph.adapters.coarse import coarse_class
from tokengraph.compat import timm
from tokengraph.select.expedite.expedite import Expedite
from tokengraph.windows import WindowCoarsening, cluster_windows
from tokengraph.windows.sam import SamBlock

COLUMNS = ("what", "median ms", "IQR ms", "over stock")
GOAL = 0.25


def main() -> None:
    """Runs the benchmark and writes ``windows.json`` and ``.md``."""
    args = _arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    warn_if_busy()
    record = environment(device) | {"model": args.model, "size": args.size, "batch": args.batch, "before": args.before}
    with torch.inference_mode():
        timings = interleave(_calls(args, device), Effort(args.rounds, args.seconds))
    stock = timings["stock blocks"]
    rows = [{"what": n} | timing_fields(t) | ratio_fields("over_stock", t.over(stock)) for n, t in timings.items()]
    share = _share(timings)
    target = {"target": "clustering + reconstruction over saved", "goal": f"<= {GOAL}"} | ratio_fields("ratio", share)
    where = out_file(args.out, "windows", device)
    write_json(where, {"environment": record, "rows": rows, "targets": [target]})
    cells = [
        [r["what"], f"{r['median_ms']:.1f}", f"{r['iqr_ms']:.1f}", with_quartiles(r, "over_stock", 3)] for r in rows
    ]
    head = f"{record['device_name']}, {record['threads']} threads; {args.model} at {args.size} px, B={args.batch}, "
    head += f"windows of 14 to {args.clusters}, before block {args.before}."
    goal = f"Clustering and reconstruction over what they save: {with_quartiles(target, 'ratio', 3)}; goal {GOAL}."
    notes = (__doc__ or "").split("\n\n", 2)[2].strip()
    page = f"# Coarsening inside windows\n\n{head}\n\n{notes}\n\n{markdown(COLUMNS, cells)}\n{goal}\n"
    where.with_suffix(".md").write_text(page, encoding="utf-8")
    show("Coarsening inside windows", COLUMNS, cells)
    print(f"{goal}\nWritten: {where}, and .md beside it")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="samvit_base_patch16")
    parser.add_argument("--size", type=int, default=1024, help="pixels a side")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--clusters", type=int, default=9, help="clusters along each side of a window")
    parser.add_argument("--before", type=int, default=4, help="the block that clusters")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=180.0, help="about how long it may take")
    parser.add_argument("--threads", type=int, help="CPU threads; default: all that torch takes")
    add_out(parser, "windows")
    return parser.parse_args()


def _calls(args: argparse.Namespace, device: torch.device) -> dict[str, Call]:
    torch.manual_seed(0)
    stock = timm.create_model(args.model, pretrained=False).to(device).eval()
    ours = copy.deepcopy(stock)
    small, window = (args.clusters, args.clusters), stock.blocks[args.before].window_size or 14
    how = Expedite(clusters=small, inv_temperature=0.01)
    tg.attach(ours, WindowCoarsening(how, before=args.before))
    side = args.size // 16
    x = torch.randn(args.batch, side, side, stock.embed_dim, device=device)
    clusters = cluster_windows(x, (window, window), small, how)
    coarse = clusters.map

    def ideal() -> Tensor:
        y = coarse
        for block in probes:
            y = block.feed(block.attend(y, small if block.window_size else None))
        return y

    def attached() -> Tensor:
        y = x
        for block in ours.blocks[args.before :]:
            y = block(y)
        return y

    def wait(call: Call) -> Call:
        def run() -> None:
            call()
            torch.cuda.synchronize(device)

        return run if device.type == "cuda" else call

    probes = [_halves(block) for block in stock.blocks[args.before :]]
    calls: dict[str, Call] = {
        "stock blocks": lambda: stock.blocks[args.before :](x),
        "ideal": ideal,
        "attached": attached,
        "clustering": lambda: cluster_windows(x, (window, window), small, how).map,
        "reconstruction": lambda: clusters.restore(coarse),
    }
    return {name: wait(call) for name, call in calls.items()}


def _halves(block: torch.nn.Module) -> SamBlock:
    probe = copy.copy(block)
    probe.__class__ = coarse_class(SamBlock, type(block))
    return probe  # type: ignore[return-value]


def _share(timings: dict[str, Timing]) -> Summary:
    """Computes the time of clustering and reconstruction over the time that the ideal saves, in each round."""
    names = ("clustering", "reconstruction", "stock blocks", "ideal")
    rounds = zip(*(timings[name].seconds for name in names), strict=True)
    return Summary.of([(down + up) / (dense - ideal) for down, up, dense, ideal in rounds])


if __name__ == "__main__":
    main()
