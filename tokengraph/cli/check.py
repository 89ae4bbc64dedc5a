"""``tokengraph check`` tries the laws of every strategy and backend on the device of this machine."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from tokengraph.cli.table import table

EPILOG = """\
What is checked, in under two minutes:
  strategies   the laws that the tests hold them to (mass, ragged batches, padding, corner cases, gradients, ...)
  device       every strategy gives on this device what it gives on the CPU, also in bfloat16
  backends     every kNN backend that is installed finds the same neighbours on this device
  models       a tiny ViT of timm, if timm is installed, with a strategy attached

examples:
  tokengraph check                      what to run first after installing, and on a new GPU
  tokengraph check tome ailurus --compile
"""


def add(commands: Any) -> None:
    """Adds the command's arguments."""
    parser = commands.add_parser(
        "check",
        help="try every strategy and backend on this machine, in under two minutes",
        description="Checks that every strategy and backend works on the device that is there.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("strategies", metavar="STRATEGY", nargs="*", help="names (default: all)")
    parser.add_argument("--device", help="default: cuda if available, else cpu")
    parser.add_argument("--compile", action="store_true", help="also compile every strategy (minutes)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Runs all checks; 1 if one is broken."""
    from tokengraph.evaluate.options import Options
    from tokengraph.select.base import registry, resolve

    device = Options(device=options.device).place()
    chosen = [resolve(n) for n in options.strategies] or [c() for c in registry().values() if not c.learns]
    start, rows = time.perf_counter(), []
    for group, subject, law, call in checks(chosen, device, options.compile):
        begun = time.perf_counter()
        reason = _broken(call)
        rows.append({"group": group, "subject": subject, "law": law, "ok": not reason, "reason": reason})
        rows[-1]["seconds"] = round(time.perf_counter() - begun, 3)
        if not options.quiet and sys.stderr.isatty():
            print(f"\r{len(rows)} checks, now {subject} {law}"[:78].ljust(79), end="\r", file=sys.stderr, flush=True)
    broken = [row for row in rows if not row["ok"]]
    report = {"device": _name(device), "seconds": round(time.perf_counter() - start, 1), "checks": len(rows)}
    if options.json:
        print(json.dumps({**report, "broken": len(broken), "rows": rows}))
    else:
        print(_page(report, rows, broken))
    return int(bool(broken))


def checks(
    strategies: list[Any], device: Any, compiled: bool = False
) -> Iterator[tuple[str, str, str, Callable[[], Any]]]:
    """Yields group, subject, law and a call that raises if the law is broken."""
    from importlib.util import find_spec

    from tokengraph.optional import backends
    from tokengraph.testing.device_laws import DEVICE_LAWS, connects_alike
    from tokengraph.testing.select_laws import SELECT_LAWS

    for select in strategies:
        name = select.name or type(select).__name__
        for law in SELECT_LAWS:
            if law.__name__ != "compiles_whole" or compiled:
                yield "strategies", name, law.__name__, lambda law=law, s=select: law(s)
        for law in DEVICE_LAWS:
            yield "device", name, law.__name__, lambda law=law, s=select: law(s, device)
    for name, backend in backends().items():
        if backend.available and name != "torch-scatter":
            yield "backends", name, "connects_alike", lambda n=name: connects_alike(n, device)
    if find_spec("timm") is not None:
        for select in strategies:
            yield "models", select.name, "attaches", lambda s=select: attaches(s, device)


def attaches(select: Any, device: Any) -> None:
    """A tiny ViT gives finite logits with the strategy, as on the CPU, and its own again without."""
    import torch

    from tokengraph.attach.attach import attach
    from tokengraph.testing.models import tiny_vit

    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    schedule = None
    for given in ({1: 0.5}, None):  # a strategy with layers of its own takes no schedule
        try:
            attach(tiny_vit(), select, given).remove()
            schedule = given
            break
        except ValueError:
            if given is None:
                return  # it needs settings that no default has
    found = []
    for place in (torch.device("cpu"), device):
        model, batch = tiny_vit().to(place), images.to(place)
        with torch.no_grad():
            plain = model(batch)
            with attach(model, select, schedule):
                found.append(model(batch).cpu())
            assert torch.equal(model(batch), plain), "other logits once it is removed"
    assert bool(torch.isfinite(found[1]).all()), "logits that are not finite"
    cosine = torch.nn.functional.cosine_similarity(found[0], found[1], dim=1).min()
    assert float(cosine) > 0.99, f"cosine {float(cosine):.3f} to the logits of the CPU"


def _broken(call: Callable[[], Any]) -> str:
    """Returns why a law is broken, in one line; empty if it holds."""
    try:
        call()
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300].rstrip(": ")
    return ""


def _name(device: Any) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _page(report: dict[str, Any], rows: list[dict[str, Any]], broken: list[dict[str, Any]]) -> str:
    groups = list(dict.fromkeys(row["group"] for row in rows))
    cells = []
    for group in groups:
        mine = [row for row in rows if row["group"] == group]
        subjects, seconds = len({row["subject"] for row in mine}), sum(row["seconds"] for row in mine)
        cells.append([group, subjects, len(mine), sum(not row["ok"] for row in mine), f"{seconds:.1f} s"])
    lines = [table(["group", "subjects", "checks", "broken", "time"], cells)]
    lines += [f"broken: {row['subject']} {row['law']}: {row['reason']}" for row in broken]
    word = f"{len(broken)} of {report['checks']} checks broken" if broken else f"all {report['checks']} checks hold"
    return "\n".join([*lines, f"{word} on {report['device']}, {report['seconds']} s"])
