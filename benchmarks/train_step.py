"""A training step with DynamicViT's masks against the dense training step: forward, backward and optimizer.

Run: ``python benchmarks/train_step.py [--model deit_small_patch16_224] [--batch 8] [--rounds 9]``

Training prunes nothing; the masked step adds the predictors, masked attention (from the first stage on) and the ratio
loss. Neither step has a teacher. Both run in interleaved rounds in one process; ratios are taken in each round.
"""

from __future__ import annotations

import argparse

import torch
from harness import Call, Effort, environment, interleave, warn_if_busy
from report import add_out, markdown, out_file, progress, ratio_fields, show, timing_fields, with_quartiles, write_json
from torch import nn

import tokengraph as tg
from tokengraph.compat import timm
from tokengraph.losses import DynamicViTLoss

COLUMNS = ("step", "median ms", "IQR ms", "over dense")
GOAL = 1.15


def main() -> None:
    """Runs the benchmark and writes ``train_step.json`` and ``.md``."""
    args = _arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    record = environment(device) | {"model": args.model, "batch": args.batch}
    warn_if_busy()
    calls = {"dense": _step(args, device, masked=False), "masked": _step(args, device, masked=True)}
    with progress(args.rounds + 1) as step:
        step("warm-up")
        timings = interleave(calls, Effort(args.rounds, args.seconds, block=0.0), tick=lambda: step("round"))
    rows = [
        {"step": name} | timing_fields(timing) | ratio_fields("ratio_to_dense", timing.over(timings["dense"]))
        for name, timing in timings.items()
    ]
    target = {"target": "masked step over dense step", "goal": f"<= {GOAL}", "ratio": rows[1]["ratio_to_dense"]}
    where = out_file(args.out, "train_step", device)
    write_json(where, {"environment": record, "rows": rows, "targets": [target]})
    cells = [
        [r["step"], f"{r['median_ms']:.0f}", f"{r['iqr_ms']:.0f}", with_quartiles(r, "ratio_to_dense", 3)] for r in rows
    ]
    head = f"{record['device_name']}, {record['threads']} threads; {args.model}, B={args.batch}; random weights."
    notes = (__doc__ or "").split("\n\n", 2)[2].strip()
    page = f"# Training step\n\n{head}\n\n{notes}\n\n{markdown(COLUMNS, cells)}\nGoal: at most {GOAL}.\n"
    where.with_suffix(".md").write_text(page, encoding="utf-8")
    show("Training step", COLUMNS, cells)
    print(f"Written: {where}, and .md beside it")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="deit_small_patch16_224", help="a timm name of the ViT family")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=300.0, help="about how long it may take")
    parser.add_argument("--threads", type=int, help="CPU threads; default: all that torch takes")
    add_out(parser, "train_step")
    return parser.parse_args()


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


if __name__ == "__main__":
    main()
