"""Dense models and videos with half of their tokens: EoMT (ViT-L, 640 px), SAM-B (1,024 px), VideoMAE-B (16 x 224 px).

Run: ``python benchmarks/dense_models.py [--only eomt sam video] [--threads 1]``

It times the whole models of transformers, heads included: plain, attached, and their ideal, which has the same numbers
of tokens without any selection. EoMT and VideoMAE have half of their tokens from a quarter of the depth on; EoMT's last
four layers, where its queries are, see every patch. SAM's windows of 14 x 14 become 10 x 10 from its third block on.
Weights are random, of the usual size; EoMT's masks in attention are off, as after its training. All run in interleaved
rounds in one process; ratios are taken in each round.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from command import Benchmark, Result, Run
from harness import Call, Effort, Timing, interleave
from report import markdown, ratio_fields, timing_fields, with_quartiles
from torch import Tensor, nn

import tokengraph as tg
from tokengraph.compat import transformers
from tokengraph.select.expedite.expedite import Expedite
from tokengraph.testing.ideal import ideal
from tokengraph.windows import WindowCoarsening

COLUMNS = ("model", "what", "median ms", "IQR ms", "over plain", "over ideal", "goal")
GOALS = {"eomt": 0.70, "sam": 0.80, "video": 0.62}
IDEAL = 1.04


def results(run: Run) -> Iterator[Result]:
    """Rows for each model; a result after each model."""
    rows: list[dict[str, Any]] = []
    for name in run.args.only:
        calls = CASES[name](run.device)
        with torch.inference_mode():
            timings = interleave(calls, run.effort)
        rows += _rows(name, timings)
        cells = [
            [r["model"], r["what"], f"{r['median_ms']:.0f}", f"{r['iqr_ms']:.0f}", *r["shown"], r["goal"]] for r in rows
        ]
        page = f"{run.machine}.\n\n{BENCHMARK.notes}\n\n{markdown(COLUMNS, cells)}\n"
        yield Result({"rows": rows}, page, [(BENCHMARK.title, COLUMNS, cells)])


def _rows(name: str, timings: dict[str, Timing]) -> Iterator[dict[str, Any]]:
    for what, timing in timings.items():
        row = {"model": name, "what": what, "goal": ""} | timing_fields(timing)
        shown = []
        for other in ("plain", "ideal"):
            if other in timings and what != other:
                row |= ratio_fields(f"over_{other}", timing.over(timings[other]))
                shown.append(with_quartiles(row, f"over_{other}", 3))
            else:
                shown.append("")
        if what not in ("plain", "ideal"):
            row["goal"] = f"plain {GOALS[name]:.2f}" + (f", ideal {IDEAL}" if name == "eomt" else "")
        yield row | {"shown": shown}


def _eomt(device: torch.device) -> dict[str, Call]:
    """AiluRus and Expedite in an EoMT on a ViT-L: 1,600 patches, then 800, or 28 x 28 clusters."""
    config = transformers.EomtConfig(image_size=640, num_queries=200, num_blocks=4)
    model = transformers.EomtForUniversalSegmentation(config).to(device).eval()
    model.attn_mask_probs.zero_()
    images = torch.randn(1, 3, 640, 640, device=device)
    depth = config.num_hidden_layers - 4
    first = config.num_hidden_layers // 4
    calls = {"plain": _call(model, images)}
    for what, select, schedule in (
        ("AiluRus", tg.AiluRus(), {first: 0.5}),
        ("Expedite", Expedite(clusters=(28, 28), inv_temperature=0.01), {first: "cluster"}),
    ):
        ours = _copy(model)
        tg.attach(ours, select, schedule)
        calls[what] = _call(ours, images)
    counts = [1600] * first + [800] * (depth - first) + [1600]
    calls["ideal"] = _ideal(_copy(model), counts, images)
    return calls


def _sam(device: torch.device) -> dict[str, Call]:
    """Windows of clusters in SAM-B's encoder, with prompts and mask decoder.

    Weights are as large as in other models. Those of ``SamConfig`` by default are about 1e-10; clusters of padding,
    whose rows are zero, then become subnormal numbers, which a CPU multiplies many times slower than others.
    """
    config = transformers.SamConfig(vision_config={"initializer_range": 0.02}, initializer_range=0.02)
    model = transformers.SamModel(config).to(device).eval()
    ours = _copy(model)
    tg.attach(ours, WindowCoarsening(Expedite(clusters=(10, 10), inv_temperature=0.01), before=2))
    images, points = torch.randn(1, 3, 1024, 1024, device=device), torch.full((1, 1, 1, 2), 512.0, device=device)
    return {
        "plain": lambda: model(pixel_values=images, input_points=points),
        "Expedite in windows": lambda: ours(pixel_values=images, input_points=points),
    }


def _video(device: torch.device) -> dict[str, Call]:
    """AiluRus and ToMe in VideoMAE-B: 1,568 tubes, then 784."""
    config = transformers.VideoMAEConfig(num_labels=400)
    model = transformers.VideoMAEForVideoClassification(config).to(device).eval()
    videos = torch.randn(1, 16, 3, 224, 224, device=device)
    first = config.num_hidden_layers // 4
    calls = {"plain": _call(model, videos)}
    for what, select in (("AiluRus", tg.AiluRus()), ("ToMe", tg.ToMe())):
        ours = _copy(model)
        tg.attach(ours, select, {first: 0.5})
        calls[what] = _call(ours, videos)
    counts = [1568] * first + [784] * (config.num_hidden_layers - first + 1)
    calls["ideal"] = _ideal(_copy(model), counts, videos)
    return calls


def _copy(model: nn.Module) -> nn.Module:
    """A copy that shares the weights, so that several models fit in memory."""
    return copy.deepcopy(model, {id(p): p for p in model.parameters()})


def _call(model: nn.Module, inputs: Tensor) -> Call:
    return lambda: model(inputs)


def _ideal(model: nn.Module, counts: list[int], inputs: Tensor) -> Call:
    def run() -> None:
        with ideal(model, counts):
            model(inputs)

    return run


CASES: dict[str, Callable[[torch.device], dict[str, Call]]] = {"eomt": _eomt, "sam": _sam, "video": _video}


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES), help="models")


BENCHMARK = Benchmark(
    "dense_models", "Dense models and videos", __doc__, results, Effort(5, 300.0), Effort(3, 60.0), _options
)

if __name__ == "__main__":
    BENCHMARK.main()
