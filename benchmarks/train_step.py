"""A training step with DynamicViT's masks against the dense training step: forward, backward and optimizer.

Run: ``python benchmarks/train_step.py [--model deit_small_patch16_224] [--batch 8] [--rounds 9]``

Training prunes nothing; the masked step adds the predictors, masked attention (from the first stage on) and the ratio
loss. Neither step has a teacher. Both run in interleaved rounds in one process; ratios are taken in each round.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from command import Benchmark, Result, Run
from harness import Call, Effort, interleave
from report import markdown, progress, ratio_fields, timing_fields, with_quartiles
from torch import nn

import tokengraph as tg
from tokengraph.compat import timm
from tokengraph.losses import DynamicViTLoss

COLUMNS = ("step", "median ms", "IQR ms", "over dense")
GOAL = 1.15


def results(run: Run) -> Iterator[Result]:
    """Rows for the dense and for the masked step."""
    args = run.args
    run.record.update(model=args.model, batch=args.batch)
    calls = {"dense": _step(args, run.device, masked=False), "masked": _step(args, run.device, masked=True)}
    with progress(run.effort.rounds + 1) as step:
        step("warm-up")
        timings = interleave(calls, run.effort, tick=lambda: step("round"))
    rows = [
        {"step": name} | timing_fields(timing) | ratio_fields("ratio_to_dense", timing.over(timings["dense"]))
        for name, timing in timings.items()
    ]
    target = {"target": "masked step over dense step", "goal": f"<= {GOAL}", "ratio": rows[1]["ratio_to_dense"]}
    cells = [
        [r["step"], f"{r['median_ms']:.0f}", f"{r['iqr_ms']:.0f}", with_quartiles(r, "ratio_to_dense", 3)] for r in rows
    ]
    head = f"{run.machine}; {args.model}, B={args.batch}; random weights."
    page = f"{head}\n\n{BENCHMARK.notes}\n\n{markdown(COLUMNS, cells)}\nGoal: at most {GOAL}.\n"
    yield Result({"rows": rows, "targets": [target]}, page, [(BENCHMARK.title, COLUMNS, cells)])


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="deit_small_patch16_224", help="a timm name of the ViT family")
    parser.add_argument("--batch", type=int, default=8)


def _step(args: argparse.Namespace, device: torch.device, *, masked: bool) -> Call:
    """One training step of a model of its own."""
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(args.model, pretrained=False).to(device).train()
    size = model.patch_embed.img_size  # type: ignore[union-attr]
    images = torch.randn(args.batch, 3, *size, device=device)  # type: ignore[misc]
    target = torch.randint(model.num_classes, (args.batch,), device=device)  # type: ignore[arg-type]
    handle = tg.attach(model, tg.DynamicViT(0.7)) if masked else None
    criterion = DynamicViTLoss(handle.select.ratios) if handle else nn.CrossEntropyLoss()  # type: ignore[attr-defined]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def run() -> None:
        logits = model(images)
        loss = criterion(logits, target, handle.trace.decisions)[0] if handle else criterion(logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return run


FULL, QUICK = Effort(9, 300.0, block=0.0), Effort(3, 40.0, block=0.0)
BENCHMARK = Benchmark("train_step", "Training step", __doc__, results, FULL, QUICK, _options)

if __name__ == "__main__":
    BENCHMARK.main()
