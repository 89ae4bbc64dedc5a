"""Times the size bias as a mask and folded into the heads, over attention without bias, and in a whole model.

Run: ``python benchmarks/size_bias.py`` (``--device cuda`` if there is one). If folding is faster on a device type, add
the type to ``FOLDS`` of ``tokengraph/attention/size_bias.py``.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from typing import Any

import harness
import torch
import torch.nn.functional as F
from report import add_out, markdown, out_file, ratio_fields, show, with_quartiles, write_json

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


def main() -> None:
    """Prints a line for each shape and dtype, and writes ``size_bias.json`` and ``.md``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0, help="a line")
    add_out(parser, "size_bias")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    harness.warn_if_busy()
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        for dtype in (torch.float32, torch.bfloat16):
            cases = {f"attention {list(s)}": kernels(s, dtype, args.device) for s in SHAPES}
            cases["ViT-S, ToMe r=13, B=8"] = models(dtype, args.device)
            for name, calls in cases.items():
                none, mask, fold = harness.interleave(calls, harness.Effort(31, args.seconds)).values()
                row = {"what": name, "dtype": str(dtype)[6:], "none_ms": round(none.ms.median, 4)}
                row |= ratio_fields("mask_over_none", mask.over(none)) | ratio_fields("fold_over_none", fold.over(none))
                rows.append(row | ratio_fields("fold_over_mask", fold.over(mask)))
    record = harness.environment(torch.device(args.device))
    where = out_file(args.out, "size_bias", args.device)
    write_json(where, {"environment": record, "rows": rows})
    cells = [
        [r["what"], r["dtype"], f"{r['none_ms']:.2f}", *(with_quartiles(r, name) for name in RATIOS)] for r in rows
    ]
    about = f"{record['device_name']}, {record['threads']} threads. Ratios are taken round by round, in one process."
    page = f"# The size bias: a mask, or folded into the heads\n\n{about}\n\n{markdown(COLUMNS, cells)}"
    where.with_suffix(".md").write_text(page, encoding="utf-8")
    show("Size bias", COLUMNS, cells)
    print(f"Written: {where}, and .md beside it")


if __name__ == "__main__":
    main()
