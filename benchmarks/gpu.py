"""Everything that only a GPU can tell, in one call: laws on CUDA, kernels against each other, whole models, prefill.

Run: ``python benchmarks/gpu.py [--device cuda] [--minutes 8] [--parts laws models] [--again]``

Needs torch with CUDA, timm and tokengraph, no network and no weights. Each part writes its rows as soon as it ends, so
a second call goes on with the cases that are missing, as after ``--minutes``; ``--again`` measures all of them anew. A
case that fails is a row with the error, and the others go on. ``--device cpu --tiny`` tries every path in seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from gpu_parts import PARTS, Kit
from harness import Effort, environment
from report import add_out, markdown, out_file, write_json

NAME = "gpu"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the parts that are missing; 1 if a case failed."""
    args = _arguments(argv)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for deterministic products, before CUDA begins
    device = torch.device(args.device)
    kit = Kit(device, args.tiny, Effort(1, 0.0, 0.0) if args.tiny else Effort(5, 1.0, 0.005))
    where = out_file(args.out, NAME, device)
    stamp = environment(device) | {"tiny": args.tiny, "driver": _driver(device), "cuda": torch.version.cuda}
    stamp |= {"cudnn": torch.backends.cudnn.version()}
    parts = {} if args.again else _earlier(where, stamp)
    end = time.monotonic() + 60.0 * args.minutes
    for name in args.parts or PARTS:
        earlier = parts.get(name, {"done": False, "rows": []})
        if earlier["done"] and not any("error" in row for row in earlier["rows"]):
            print(f"{name}: there already")
            continue
        parts[name] = _part(name, kit, end, earlier["rows"])
        _write(where, stamp, parts)
        rows = parts[name]["rows"]
        broken = sum("error" in row for row in rows)
        print(f"{name}: {len(rows)} cases, {broken} failed, {'done' if parts[name]['done'] else 'not all: time'}")
    failed = [f"{n}: {r['case']}: {r['error']}" for n, p in parts.items() for r in p["rows"] if "error" in r]
    print("\n".join([*failed, f"Written: {where}, and .md beside it"]))
    return int(bool(failed))


def _part(name: str, kit: Kit, end: float, earlier: list[dict[str, Any]]) -> dict[str, Any]:
    """Measures the cases of a part that are not among ``earlier`` rows, until the time is over."""
    rows = [row for row in earlier if "error" not in row]
    there = {row["case"] for row in rows}
    start = time.monotonic()
    if start > end:
        return {"done": False, "seconds": 0.0, "rows": rows}
    done = True
    try:
        for case, call in PARTS[name](kit):
            if case in there:
                continue
            if time.monotonic() > end:
                done = False
                break
            rows.append({"case": case} | _row(call))
    except Exception as error:  # of what the cases share
        rows.append({"case": "setup", "error": _text(error)})
    return {"done": done, "seconds": round(time.monotonic() - start, 1), "rows": rows}


def _row(call: Any) -> dict[str, Any]:
    try:
        return call()
    except Exception as error:  # one broken case must not take the others with it
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return {"error": _text(error)}


def _text(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


def _earlier(where: Path, stamp: dict[str, Any]) -> dict[str, Any]:
    """The parts of an earlier run on the same device and versions; none otherwise."""
    if not where.exists():
        return {}
    found = json.loads(where.read_text(encoding="utf-8"))
    same = ("device_name", "driver", "versions", "tiny")
    return found["parts"] if all(found["environment"].get(k) == stamp[k] for k in same) else {}


def _write(where: Path, stamp: dict[str, Any], parts: dict[str, Any]) -> None:
    write_json(where, {"environment": stamp, "parts": parts})
    page = [f"# On {stamp['device_name']}", "", f"CUDA {stamp['cuda']}, driver {stamp['driver']}. {stamp['versions']}."]
    for name, part in parts.items():
        keys = list(dict.fromkeys(key for row in part["rows"] for key in row if not isinstance(row[key], dict | list)))
        cells = [[_cell(row.get(key)) for key in keys] for row in part["rows"]]
        page += ["", f"## {name}" + ("" if part["done"] else " (not all: time)"), "", markdown(keys, cells)]
    where.with_suffix(".md").write_text("\n".join(page), encoding="utf-8")


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value).replace("|", "/")


def _driver(device: torch.device) -> str | None:
    """The driver's CUDA version, as 13.0."""
    if device.type != "cuda":
        return None
    number = torch._C._cuda_getDriverVersion()
    return f"{number // 1000}.{number % 1000 // 10}"


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes, to try every path")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which no case begins")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), help="default: all")
    parser.add_argument("--again", action="store_true", help="measure parts again that are there already")
    add_out(parser, NAME)
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
