"""``tokengraph models`` lists the model families, and says of one model whether it is supported."""

from __future__ import annotations

import argparse
import inspect
import json
import math
from typing import Any

from tokengraph.cli.table import table

EPILOG = """\
examples:
  tokengraph models                                families
  tokengraph models deit_small_patch16_224         one model, with random weights: depth, width, patches
  tokengraph models transformers:facebook/dinov2-small
"""


def add(commands: Any) -> None:
    """Adds the command's arguments."""
    parser = commands.add_parser(
        "models",
        help="list the supported model families, or describe one model",
        description="Lists the families of models, or loads one without its weights and describes it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", nargs="?", help="a name, as for tokengraph eval")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints families, or one model."""
    if options.model is not None:
        found = describe(options.model)
        print(json.dumps(found) if options.json else "\n".join(f"{k}: {v}" for k, v in found.items()))
        return 0
    from tokengraph.adapters import ADAPTERS

    rows = [
        {"family": a.family, "adapter": type(a).__name__, "about": (inspect.getdoc(a) or "").split("\n")[0]}
        for a in ADAPTERS
    ]
    wide = {
        "Swin, SAM of timm": "tg.WindowCoarsening",
        "Swin, ConvNeXt of timm": "tg.DynamicSpatial",
        "your own, with nn.TransformerEncoder": "tg.adapters.EncoderLayers",
    }
    rows += [{"family": family, "adapter": how, "about": "by this class"} for family, how in wide.items()]
    print(json.dumps(rows) if options.json else table(["family", "by", "about"], [list(r.values()) for r in rows]))
    return 0


def describe(name: str) -> dict[str, Any]:
    """Returns the facts of one model, built with random weights.

    Raises:
        ValueError: If the name is unknown, or no family serves the model.
    """
    from tokengraph.adapters import find_adapter
    from tokengraph.evaluate.source import source_of

    source = source_of(name, random_weights=True)
    core, adapter = find_adapter(source.build(None))
    grid = adapter.grid(core)
    return {
        "model": name,
        "family": adapter.family,
        "blocks": len(adapter.blocks(core)),
        "channels": adapter.channels(core),
        "patches": math.prod(grid),
        "grid": list(grid),
        "prefix tokens": adapter.num_prefix(core),
        "class token": bool(adapter.has_class_token(core)),
        "parameters": sum(p.numel() for p in core.parameters()),
        "images": source.config.describe() if source.config is not None else "",
    }
