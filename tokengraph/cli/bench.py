"""``tokengraph bench merge | model`` times choosing and merging, or whole models, on this machine."""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

from tokengraph.cli.table import table

EPILOG = """\
examples:
  tokengraph bench merge --shape 8x196x384           every strategy: choose, merge and lift half of the tokens
  tokengraph bench merge tome ailurus --keep 0.25
  tokengraph bench model deit_small_patch16_224 tome:13 "ailurus:{5: 0.5}"

All variants run in turn, round by round, so that slow phases of the machine affect all of them. "ideal" is the same
model with the same numbers of tokens and no choice at all. A checkout's benchmarks/ compare with dense code as well.
"""


def add(commands: Any) -> None:
    """Adds the command's arguments."""
    parser = commands.add_parser(
        "bench",
        help="time strategies alone (merge) or whole models (model) on this machine",
        description="Times strategies alone (merge) or in models (model).",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(required=True, metavar="KIND", dest="kind")
    merge = kinds.add_parser("merge", help="choose, merge and lift, without a model")
    merge.add_argument("strategies", metavar="STRATEGY", nargs="*", help="names (default: all that need no model)")
    merge.add_argument("--shape", metavar="BxNxC", default="8x196x384", help="N a square (%(default)s)")
    merge.add_argument("--keep", metavar="K", type=float, default=0.5, help="share of the tokens (%(default)s)")
    merge.set_defaults(run=run_merge)
    model = kinds.add_parser("model", help="whole models with random weights and images")
    model.add_argument("model", metavar="MODEL", help="a name, as for tokengraph eval")
    model.add_argument("settings", metavar="SETTING", nargs="+", help="as for tokengraph eval")
    model.add_argument("--batch-size", metavar="N", type=int, default=8, help="%(default)s")
    model.add_argument("--amp", choices=("bfloat16", "float16"), help="run under autocast")
    model.set_defaults(run=run_model)
    for kind in (merge, model):
        kind.add_argument("--device", help="default: cuda if available, else cpu")
        kind.add_argument("--rounds", metavar="N", type=int, default=7, help="%(default)s")
        kind.add_argument("--json", action="store_true", help="print JSON")
        kind.add_argument("--quiet", action="store_true", help="no progress")


def run_merge(options: argparse.Namespace) -> int:
    """Times each strategy's choice, merging and lifting."""
    from tokengraph.evaluate.options import Options
    from tokengraph.evaluate.timing import quartiles, time_forms
    from tokengraph.select.base import registry, resolve

    if not 0 < options.keep <= 1:
        raise ValueError(f"Expected keep in (0, 1] (got {options.keep:g}).")
    shape = _shape(options.shape)
    device = Options(device=options.device, time_rounds=options.rounds).place()
    chosen = [resolve(n) for n in options.strategies] or [c() for c in registry().values() if not c.learns]
    forms, skipped = [], {}
    for select in chosen:
        try:
            forms += _merge_forms(select, shape, options.keep, device)
        except (ValueError, TypeError, RuntimeError) as error:
            skipped[select.name] = str(error).splitlines()[0]
    found = time_forms(forms, options.rounds, show=not options.quiet)
    rows = [
        {"strategy": name, "stage": stage, **dict(zip(("ms", "low", "high"), quartiles(ms), strict=True))}
        for name, stages in found.items()
        for stage, ms in stages.items()
    ]
    if options.json:
        print(
            json.dumps({"shape": shape, "keep": options.keep, "device": str(device), "rows": rows, "skipped": skipped})
        )
        return 0
    cells = [[r["strategy"], r["stage"], f"{r['ms']:.3f}", f"{r['low']:.3f} to {r['high']:.3f}"] for r in rows]
    print(table(["strategy", "stage", "ms", "quartiles"], cells))
    for name, reason in skipped.items():
        print(f"skipped {name}: {reason}")
    return 0


def _merge_forms(select: Any, shape: tuple[int, int, int], keep: float, device: Any) -> list[Any]:
    from contextlib import nullcontext

    import torch

    from tokengraph.evaluate.timing import Timed
    from tokengraph.testing.tokens import make_tokens

    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    side, budget = math.isqrt(shape[1]), max(1, int(keep * shape[1]))

    def choose(x: Any) -> Any:
        return select(make_tokens(x, (side, side)), budget)

    found = choose(x)
    rows = x.flatten(0, 1)
    y = found.reduce(rows)[0]
    calls = {"choose": choose, "merge": lambda x: found.reduce(rows), "lift": lambda x: found.lift(y)}
    return [Timed(select.name, stage, lambda call=call: nullcontext(call), x) for stage, call in calls.items()]


def _shape(text: str) -> tuple[int, int, int]:
    parts = text.lower().split("x")
    if (
        len(parts) != 3
        or not all(p.isdigit() and int(p) for p in parts)
        or math.isqrt(int(parts[1])) ** 2 != int(parts[1])
    ):
        raise ValueError(f"Expected a shape as BxNxC with N a square, for example 8x196x384 (got {text!r}).")
    images, tokens, channels = map(int, parts)
    return images, tokens, channels


def run_model(options: argparse.Namespace) -> int:
    """Times the plain model, each setting and its ideal."""
    from tokengraph.evaluate.forms import Forms
    from tokengraph.evaluate.measure import measure
    from tokengraph.evaluate.options import Options
    from tokengraph.evaluate.run import DENSE
    from tokengraph.evaluate.settings import read_setting
    from tokengraph.evaluate.source import source_of
    from tokengraph.evaluate.timing import quartiles

    settings = [read_setting(text) for text in options.settings]
    how = Options(
        batch_size=options.batch_size,
        time_batch=options.batch_size,
        time_rounds=options.rounds,
        device=options.device,
        amp=options.amp,
        progress=not options.quiet,
    )
    forms = Forms(source_of(options.model, random_weights=True), how.place(), random_weights=True)
    forms.model()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "measured.json"
        measure(forms, settings, how, file)
        found = json.loads(file.read_text(encoding="utf-8"))
    rows, plain = [], found[DENSE.key]["ms"].get("plain", [])
    for setting in (DENSE, *settings):
        ms, peak = found[setting.key]["ms"], found[setting.key]["peak"]
        own = ms.get("plain" if setting is DENSE else "attached")
        row: dict[str, Any] = {"setting": setting.name, "ms": None, "speedup": None, "ideal": None, "peak_mib": None}
        if own:
            row["ms"] = quartiles(own)[0]
            row["speedup"] = quartiles([a / b for a, b in zip(plain, own, strict=True)])[0]
        if own and ms.get("ideal"):
            row["ideal"] = quartiles([a / b for a, b in zip(plain, ms["ideal"], strict=True)])[0]
        row["peak_mib"] = None if peak is None else peak / 2**20
        rows.append(row)
    if options.json:
        print(
            json.dumps({"model": options.model, "device": str(forms.device), "batch": options.batch_size, "rows": rows})
        )
    else:
        cells = [[r["setting"], *("-" if r[k] is None else f"{r[k]:.2f}" for k in list(r)[1:])] for r in rows]
        print(table(["setting", "ms", "speedup", "ideal speedup", "peak MiB"], cells))
    if failed := [row["setting"] for row in rows if row["ms"] is None]:
        raise ValueError(
            f"Expected settings that fit the model (got {failed[0]!r}, which cannot run). See tokengraph eval."
        )
    return 0
