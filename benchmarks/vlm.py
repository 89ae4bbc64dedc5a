"""Fewer visual tokens in vision-language models: time to first token, tokens a second, bytes of cache.

Run: ``python benchmarks/vlm.py [--cases llava qwen gemma] [--batch 1 8] [--keep 0.25]``

Models have the widths of published ones, random weights, and as many layers as ``--tower`` and ``--decoder`` say: fewer
than the published models, so that they fit a small machine. A published decoder has 26 to 36 layers: there the language
model's share of the time, and what is saved, is that much larger; choosing costs the same. Random weights say nothing
about answers.

Rows of one model and batch are measured in interleaved rounds on one prompt. "first token" is the time from pixels to
the first token: tower, choosing and rearranging, prefill. "choosing" is ``tokengraph.vlm.reduce`` on features that are
encoded already. "prefill" is the language model on the prompt, "over ideal" its time over that of a text prompt of that
length. "pays" says whether the first token comes sooner than without reduction. "smaller image" encodes an image of
half the side, where a model takes one: fewer tokens in the tower too.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from command import Benchmark, Result, Run
from harness import Call, interleave
from report import Row, markdown, progress
from vlm_shapes import SHAPES, Shape

from tokengraph import vlm

COLUMNS = (
    "model", "batch", "variant", "visual tokens", "first token ms", "choosing ms", "prefill ms", "prefill over ideal",
    "decode tokens/s", "cache MB", "choosing over saved prefill", "pays",
)  # fmt: skip
NEW = 8  # tokens to decode


def results(run: Run) -> Iterator[Result]:
    """Rows for every model and batch, after each of them."""
    args = run.args
    run.record.update(tower_layers=args.tower, decoder_layers=args.decoder, keep=args.keep, text=args.text)
    rows: list[Row] = []
    for case in args.cases:
        shape = SHAPES[case]
        if args.strategies:
            shape = replace(shape, strategies=tuple(args.strategies))
        if args.side and shape.smaller:
            shape = replace(shape, side=args.side, smaller=args.side // 2)
        torch.manual_seed(0)
        model = shape.make(args.tower, args.decoder).to(run.device).eval()
        for batch in args.batch:
            with torch.inference_mode():
                rows += _case(run, shape, model, batch)
            cells = [[str(row[name]) for name in COLUMNS] for row in rows]
            head = (
                f"{run.machine}; {args.tower} tower layers, {args.decoder} decoder layers, keep={args.keep}, "
                f"{args.text} text tokens; random weights. {run.versions}"
            )
            page = f"{head}\n\n{BENCHMARK.notes}\n\n{markdown(COLUMNS, cells)}"
            yield Result({"rows": rows}, page, [(BENCHMARK.title, COLUMNS, cells)])


def _case(run: Run, shape: Shape, model: Any, batch: int) -> list[Row]:
    """All variants of one model and batch."""
    args = run.args
    variants = {"dense": None, **{name: name for name in shape.strategies}}
    prompts = {name: shape.inputs(batch, shape.side, args.text) for name in variants}
    if shape.smaller:
        variants["smaller image"] = None
        prompts["smaller image"] = shape.inputs(batch, shape.smaller, args.text)
    calls: dict[str, Call] = {}
    facts: dict[str, Row] = {}
    for name, select in variants.items():
        inputs = {n: v.to(run.device) for n, v in prompts[name].items()}
        encoded = vlm.reduce(model, inputs, "dpc-knn", 1.0)
        short = encoded if select is None else vlm.reduce(model, inputs, select, args.keep)
        facts[name] = _facts(model, short)
        again = vlm.VisionZip if select == "visionzip" else select  # it reads the tower's attention
        calls |= {f"{name}/{part}": call for part, call in _parts(model, inputs, encoded, short, again, args).items()}
    with progress(run.effort.rounds + 1) as step:
        step("warm-up")
        times = interleave(calls, run.effort, tick=lambda: step("round"))
    return [_row(shape, batch, name, facts, times) for name in variants]


def _parts(model: Any, inputs: dict, encoded: dict, short: dict, select: Any, args: argparse.Namespace) -> dict:
    """The calls of one variant."""
    text = torch.full((len(inputs["input_ids"]), short["input_ids"].size(1)), 5, device=short["input_ids"].device)

    def first() -> None:
        given = inputs if select is None else vlm.reduce(model, inputs, select, args.keep)
        model.generate(**given, max_new_tokens=1, do_sample=False)

    def decode(count: int) -> Call:
        return lambda: model.generate(**short, max_new_tokens=count, min_new_tokens=count, do_sample=False)

    found: dict[str, Call] = {
        "first": first,
        "prefill": lambda: model(**short, logits_to_keep=1),
        "ideal": lambda: model(input_ids=text, attention_mask=torch.ones_like(text), logits_to_keep=1),
        "one": decode(1),
        "more": decode(1 + NEW),
    }
    if select is not None and select is not vlm.VisionZip:
        found["choosing"] = lambda: vlm.reduce(model, encoded, select, args.keep)
    elif select is vlm.VisionZip:
        found["encode"] = lambda: model.base_model.get_image_features(inputs["pixel_values"], return_dict=True)
        found["reduce"] = lambda: vlm.reduce(model, inputs, "visionzip", args.keep)
    return found


def _facts(model: Any, short: dict) -> Row:
    """Tokens and cache of a prompt."""
    cache = model(**short, use_cache=True, logits_to_keep=1).past_key_values
    size = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    return {"kept": short.record.kept[0], "bytes": size}  # type: ignore[attr-defined]


def _row(shape: Shape, batch: int, name: str, facts: dict[str, Row], times: dict[str, Any]) -> Row:
    """One row of the table, with the numbers behind it."""

    def ms(variant: str, part: str) -> float:
        return times[f"{variant}/{part}"].ms.median

    choosing = None
    if f"{name}/choosing" in times:
        choosing = ms(name, "choosing")
    elif f"{name}/reduce" in times:
        choosing = ms(name, "reduce") - ms(name, "encode")
    saved = ms("dense", "prefill") - ms(name, "prefill")
    decode = 1e3 * NEW * batch / max(ms(name, "more") - ms(name, "one"), 1e-9)
    over = times[f"{name}/prefill"].over(times[f"{name}/ideal"]).median
    share = None if choosing is None else choosing / saved if saved > 0 else float("nan")
    pays = "" if name == "dense" else "yes" if ms(name, "first") < ms("dense", "first") else "no"
    shown = (
        shape.name, batch, name, facts[name]["kept"], f"{ms(name, 'first'):.0f}",
        "" if choosing is None else f"{choosing:.1f}", f"{ms(name, 'prefill'):.0f}", f"{over:.3f}", f"{decode:.1f}",
        f"{facts[name]['bytes'] / 1e6:.1f}", "" if share is None else f"{100 * share:.2f} %", pays,
    )  # fmt: skip
    return {
        **dict(zip(COLUMNS, shown, strict=True)),
        "seconds": {key.split("/")[1]: t.seconds for key, t in times.items() if key.startswith(f"{name}/")},
        "cache_bytes": facts[name]["bytes"],
        "choosing_over_saved_prefill": share,
    }


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cases", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--strategies", nargs="+", help="default: those of the case")
    parser.add_argument("--side", type=int, help="pixels of the image, where a model takes any; default: the case's")
    parser.add_argument("--keep", type=float, default=0.25)
    parser.add_argument("--text", type=int, default=64, help="text tokens of a prompt")
    parser.add_argument("--tower", type=int, default=2, help="layers of the tower")
    parser.add_argument("--decoder", type=int, default=2, help="layers of the language model")


BENCHMARK = Benchmark("vlm", "Fewer visual tokens in vision-language models", __doc__, results, options=_options)

if __name__ == "__main__":
    BENCHMARK.main()
