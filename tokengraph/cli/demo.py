"""``tokengraph demo``: makes and coarsens a graph of a photograph's tokens, and runs a faster model."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tokengraph.optional import optional


def add(commands: Any) -> None:
    """Adds the command's arguments."""
    demo = commands.add_parser("demo", help="make and coarsen a graph of a photograph's tokens, and run a faster model")
    demo.add_argument("--image", metavar="PATH", type=Path, help="your photograph (default: one from scikit-image)")
    demo.add_argument("--model", metavar="NAME", default="vit_small_patch16_224.dino", help="timm name (%(default)s)")
    demo.add_argument("--size", metavar="PX", type=int, default=448, help="side of the image in pixels (%(default)s)")
    demo.add_argument("--out", metavar="DIR", type=Path, default=Path("outputs/demo"), help="pictures (%(default)s)")
    demo.add_argument("--no-pretrained", action="store_true", help="use random weights")
    demo.add_argument("--json", action="store_true", help="print what was found as JSON, and the tables to stderr")
    demo.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Runs the demo."""
    console = optional("rich.console").Console(stderr=options.json)
    from tokengraph.demo.run import run_demo

    found = run_demo(
        options.image,
        model=options.model,
        size=options.size,
        out=options.out,
        pretrained=not options.no_pretrained,
        console=console,
    )
    if options.json:
        print(json.dumps(found.json(), indent=1))
    return 0
