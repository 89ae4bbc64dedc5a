"""Images that keep different numbers of tokens: one padded batch, groups of similar images, packed, and one by one.

Run: ``python benchmarks/ragged.py [--quick] [--batch 16] [--threads 1]``

The model is timm's deit_small_patch16_224 with random weights. Images are noise on a share of them that rises from an
eighth to all, and flat elsewhere. DynamicViT's predictors are fitted to keep patches of noise, so that images keep from
few to all tokens; the threshold is a probability. MPM merges as it likes. Groups hold images whose padding is at most a
tenth of the rows (``tokengraph/attach/ragged.py``); they are the default on CPU. Packed images lie in one sequence and
attend within themselves by a nested tensor, which has one fused kernel on CUDA and none on CPU. All four run in
interleaved rounds; the last column is how much outputs differ from those of one image at a time.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from command import Benchmark, Result, Run
from harness import Effort, interleave
from report import markdown, progress, ratio_fields, with_quartiles
from torch import Tensor, nn

import tokengraph as tg
from tokengraph.attach.ragged import ragged_batches
from tokengraph.compat import timm

COLUMNS = (
    "strategy",
    "tokens at the end",
    "padding",
    "padded, images / s",
    "groups, images / s",
    "packed, images / s",
    "one at a time, images / s",
    "groups over padded [quartiles]",
    "largest difference",
)
BATCHED = ("padded", "groups", "packed")
FIT = 40  # steps of fitting each predictor


def images_of(batch: int, side: int = 14, patch: int = 16) -> tuple[Tensor, Tensor]:
    """Images of ``side * side`` patches, ``[B, 3, S, S]``, and whether each patch is noise, ``[B, side * side]``."""
    draw, patches = torch.Generator().manual_seed(0), side * side
    images, noise = torch.zeros(batch, 3, side * patch, side * patch), torch.zeros(batch, patches)
    for i in range(batch):
        count = round(patches * (1 + 7 * i / max(batch - 1, 1)) / 8)
        noise[i, torch.randperm(patches, generator=draw)[:count]] = 1.0
    rows = noise.view(batch, 1, side, side).repeat_interleave(patch, 2).repeat_interleave(patch, 3)
    return images + rows * torch.randn(images.shape, generator=draw), noise


def fit(model: nn.Module, predictors: nn.ModuleList, layers: tuple[int, ...], images: Tensor, noise: Tensor) -> None:
    """Fits each stage's predictor to keep patches of noise, on the plain model's tokens of that layer."""
    with torch.no_grad():
        found = model.forward_intermediates(images, output_fmt="NLC", intermediates_only=True)  # type: ignore[operator]
        tokens = dict(enumerate(found, 1))
    label = (1 - noise).long()  # channel 0 keeps
    for predictor, layer in zip(predictors, layers, strict=True):
        learn = torch.optim.Adam(predictor.parameters(), 1e-3)
        for _ in range(FIT):
            learn.zero_grad()
            nn.functional.nll_loss(predictor(tokens[layer]).flatten(0, 1), label.flatten()).backward()
            learn.step()


def results(run: Run) -> Iterator[Result]:
    """A row for each strategy; a result after each."""
    args, rows = run.args, []
    cases = {f"dynamicvit, threshold {t:g}": tg.DynamicViT(threshold=t) for t in (0.3, 0.5, 0.7)}
    cases |= {"mpm": tg.MPM(), "g2tm": tg.G2TM(0.1)}
    if args.quick:
        cases = dict(list(cases.items())[1:2])
    images, noise = images_of(args.batch)
    torch.manual_seed(0)
    model = timm.create_model("deit_small_patch16_224").eval()
    with progress(len(cases)) as step:
        for name, select in cases.items():
            step(name)
            rows.append({"strategy": name} | measure(model, select, images, noise, run.effort))
            cells = [_cells(row) for row in rows]
            page = f"{run.machine}; {run.versions}. B = {args.batch}.\n\n{BENCHMARK.notes}\n\n"
            yield Result({"rows": rows}, page + markdown(COLUMNS, cells), [(BENCHMARK.title, COLUMNS, cells)])


def measure(
    model: nn.Module,
    select: Any,
    images: Tensor,
    noise: Tensor,
    effort: Effort,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Times one strategy in four ways, in turns, on the device of the images; DynamicViT's predictors are fitted."""
    with ExitStack() as stack:
        handle = stack.enter_context(tg.attach(model, select))
        if isinstance(handle.select, tg.DynamicViT):
            with handle.paused():
                torch.manual_seed(0)
                fit(model, handle.select.predictors, handle.select.layers, images, noise)  # type: ignore[arg-type]
            model.eval()
        stack.enter_context(torch.inference_mode())
        model, images = model.to(dtype), images.to(dtype)

        def run(way: str) -> Tensor:
            with ragged_batches(way):
                return model(images)

        def alone() -> Tensor:
            return torch.cat([model(image) for image in images.split(1)])

        expected = alone()
        difference = max((run(way) - expected).abs().max().item() for way in BATCHED)
        counts = handle.trace.counts_per_image(handle.trace.depth)
        timings = interleave({way: partial(run, way) for way in BATCHED} | {"alone": alone}, effort)
    row = {"counts": counts, "padding": round(1 - sum(counts) / (max(counts) * len(counts)), 3)}
    for name, timing in timings.items():
        row[f"{name}_per_s"] = round(1e3 * len(images) / timing.ms.median, 2)
    return row | ratio_fields("ratio", timings["groups"].over(timings["padded"])) | {"difference": difference}


def _cells(row: dict[str, Any]) -> list[str]:
    counts = row["counts"]
    return [
        row["strategy"],
        f"{min(counts)} to {max(counts)}",
        f"{row['padding']:.0%}",
        *(f"{row[f'{name}_per_s']:.1f}" for name in (*BATCHED, "alone")),
        with_quartiles(row, "ratio", 3),
        f"{row['difference']:.1g}",
    ]


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=int, default=16)


BENCHMARK = Benchmark(
    "ragged",
    "Images with different numbers of tokens",
    __doc__,
    results,
    Effort(7, 25.0, 0.0),
    Effort(3, 5.0, 0.0),
    _options,
    "one strategy",
)

if __name__ == "__main__":
    BENCHMARK.main()
