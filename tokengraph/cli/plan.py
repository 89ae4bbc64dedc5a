"""``tokengraph plan`` chooses input size, strategy and tokens after each block for a budget."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from tokengraph.cli import arguments

EPILOG = """\
budgets (give one):
  --speedup 1.5   at most 1/1.5 of the plain model's time on this device, at --batch-size
  --time 20       at most 20 milliseconds a batch
  --cost 0.5      at most half of the multiply-adds, merging included
  --tokens 64     at most 64 patch tokens after the last block (or a share: 0.25)

examples:
  tokengraph plan deit_small_patch16_224 --data photos --cost 0.5 --out plan.json
  tokengraph plan vit_small_patch14_dinov2 --data photos --speedup 1.5 --preserve patches --batch-size 32
  tokengraph eval deit_small_patch16_224 plan.json --data imagenet/val

In Python: tg.attach(model, tg.Plan.load("plan.json")). If nothing meets a budget of time, the plan changes nothing and
says so.
"""


def add(commands: Any) -> None:
    """Adds the command's arguments."""
    parser = commands.add_parser(
        "plan",
        help="choose where a model merges its tokens, and on images of which size, for a budget",
        description="Measures a model on a few dozen images; plans input size, strategy and tokens after each block.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help=arguments.MODEL)
    budget = parser.add_argument_group("budget").add_mutually_exclusive_group(required=True)
    budget.add_argument("--speedup", metavar="X", type=float)
    budget.add_argument("--time", metavar="MS", type=float)
    budget.add_argument("--cost", metavar="SHARE", type=float)
    budget.add_argument("--tokens", metavar="N", type=_count)
    parser.add_argument("--data", metavar="PATH", required=True, help="a folder of images, with or without classes")
    parser.add_argument("--limit", metavar="N", type=int, default=36, help="images, drawn by --seed (%(default)s)")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="%(default)s")
    parser.add_argument(
        "--preserve", choices=("class", "patches", "features", "logits"), default="class", help="%(default)s"
    )
    parser.add_argument(
        "--strategies", metavar="NAME", nargs="+", help="default: those that measured best; all: every one"
    )
    parser.add_argument("--no-resolution", action="store_true", help="keep the input size")
    parser.add_argument("--batch-size", metavar="N", type=int, default=8, help="of runs and of timing (%(default)s)")
    parser.add_argument(
        "--pays", metavar="FILE", help="leave out strategies that save no time here by a table of benchmarks/pays.py"
    )
    arguments.add_weights(parser)
    parser.add_argument("--out", metavar="FILE", help="write the plan as JSON")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Plans, prints the table and writes the file."""
    import torch

    from tokengraph.evaluate.chunks import read_chunk
    from tokengraph.evaluate.config import config_of_model
    from tokengraph.evaluate.images import limited
    from tokengraph.evaluate.options import Options
    from tokengraph.planning import plan
    from tokengraph.planning.files import check_writable

    if options.out:
        check_writable(options.out)  # now, not after minutes of search
    images = limited(arguments.images(options.data, labels="none"), options.limit, options.seed)
    source = arguments.source(options)
    model = source.build(None).eval().to(Options(device=options.device).place(0))
    config = source.config or config_of_model(model)
    chunk = read_chunk(images, 0, len(images), config, 2)
    for index, reason in chunk.bad:
        print(f"skipped {images.key(index)}: {reason}", file=sys.stderr)
    if not chunk.index:
        raise ValueError(f"Expected images that can be read in {options.data!r} (got none).")
    strategies = options.strategies
    made = plan(
        model,
        torch.as_tensor(chunk.inputs(config)),
        speedup=options.speedup,
        cost=options.cost,
        time=options.time,
        tokens=options.tokens,
        preserve=options.preserve,
        strategies=strategies[0] if strategies in (["all"], ["none"]) else strategies,
        resolution=not options.no_resolution,
        batch_size=options.batch_size,
        pays=options.pays,
        progress=not options.quiet,
    )
    if options.out:
        made.save(options.out)
    print(json.dumps(made.json(), indent=1) if options.json else made)
    if options.out:
        print(f"Written to {options.out}", file=sys.stderr)
    return 0


def _count(text: str) -> int | float:
    """Reads a number of tokens, or a share."""
    return int(text) if text.isdigit() else float(text)
