"""Times the size bias as a mask and folded into the heads, over attention without bias, and in a whole model.

Run: ``python benchmarks/size_bias.py`` (``--device cuda`` if there is one). If folding is faster on a device type, add
the type to ``FOLDS`` of ``tokengraph/attention/size_bias.py``.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator
from typing import Any

import harness
import torch
import torch.nn.functional as F
from command import Benchmark, Result, Run
from report import markdown, ratio_fields, with_quartiles

import tokengraph as tg
from tokengraph.attention.size_bias import folded_attention
from tokengraph.compat import timm

RATIOS = ("mask_over_none", "fold_over_none", "fold_over_mask")
COLUMNS = ("what", "dtype", "none, ms", "mask / none", "fold / none", "fold / mask")
SHAPES = [(8, 6, 197, 64), (8, 12, 197, 64), (8, 12, 577, 64), (1, 6, 99, 64)]  # B, H, N, D


def kernels(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> dict[str, Callable[[], object]]:
    """Attention without a bias, with a mask, and folded."""
    q, k, v = (torch.randn(shape, device=device, dtype=dtype) for _ in range(3))
    size = torch.randint(1, 9, (shape[0], 1, 1, shape[2]), device=device).float()
    return {
        "none": lambda: F.scaled_dot_product_attention(q, k, v),
        "mask": lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=size.log().to(dtype)),
        "fold": lambda: folded_attention(q, k, v, size.log()),
    }


def models(dtype: torch.dtype, device: str) -> dict[str, Callable[[], object]]:
    """ViT-S with ToMe, 13 tokens fewer in every block, B=8."""
    plain = timm.create_model("vit_small_patch16_224").eval().to(device, dtype)
    images = torch.randn(8, 3, 224, 224, device=device, dtype=dtype)
    calls: dict[str, Callable[[], object]] = {}
    for name, options in {
        "none": {"prop_attn": "none"},
        "mask": {"size_bias": "mask"},
        "fold": {"size_bias": "fold"},
    }.items():
        model = copy.deepcopy(plain)
        tg.attach(model, "tome", 13, **options)
        calls[name] = lambda model=model: model(images)
    return calls


def results(run: Run) -> Iterator[Result]:
    """A row for each shape and dtype."""
    rows: list[dict[str, Any]] = []
    device = run.args.device
    with torch.inference_mode():
        for dtype in (torch.float32, torch.bfloat16):
            cases = {f"attention {list(s)}": kernels(s, dtype, device) for s in SHAPES}
            cases["ViT-S, ToMe r=13, B=8"] = models(dtype, device)
            for name, calls in cases.items():
                none, mask, fold = harness.interleave(calls, run.effort).values()
                row = {"what": name, "dtype": str(dtype)[6:], "none_ms": round(none.ms.median, 4)}
                row |= ratio_fields("mask_over_none", mask.over(none)) | ratio_fields("fold_over_none", fold.over(none))
                rows.append(row | ratio_fields("fold_over_mask", fold.over(mask)))
    cells = [
        [r["what"], r["dtype"], f"{r['none_ms']:.2f}", *(with_quartiles(r, name) for name in RATIOS)] for r in rows
    ]
    page = f"{run.machine}. Ratios are taken round by round, in one process.\n\n{markdown(COLUMNS, cells)}"
    yield Result({"rows": rows}, page, [("Size bias", COLUMNS, cells)])


def _options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(device="cpu", threads=1)


TITLE = "The size bias: a mask, or folded into the heads"
FULL, QUICK = harness.Effort(31, 5.0), harness.Effort(3, 1.0)
BENCHMARK = Benchmark("size_bias", TITLE, __doc__, results, FULL, QUICK, _options)

if __name__ == "__main__":
    BENCHMARK.main()
