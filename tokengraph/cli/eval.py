"""``tokengraph eval`` measures the accuracy and time of strategies on a user's model and images."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tokengraph.cli import arguments

EPILOG = """\
settings:
  tome:13                      13 tokens fewer in every block
  "ailurus:{5: 0.5}"           half of the tokens once 5 blocks are finished
  resolution:168               the same model on a smaller image
  resolution:196+tome:10       both
  "ailurus:{5: 0.25},reduce=mlerp,prop_attn=half-log"    with options
  model:deit_tiny_patch16_224  another model
  plan.json                    {"strategy": "tome", "schedule": 13, "resolution": 196}

images (--data):
  a folder with one folder a class; ImageNet's val folder (--synsets for your own order of classes); a folder of
  images without labels (fidelity only); a folder with images/ and masks/; datasets:NAME:SPLIT from the hub

examples:
  tokengraph eval deit_small_patch16_224 tome:13 "ailurus:{5: 0.5}" --data imagenet/val --limit 5000
  tokengraph eval vit_small_patch14_dinov2 tome:8 --data photos --probe linear
  torchrun --nproc-per-node 2 -m tokengraph eval deit_small_patch16_224 tome:13 --data imagenet/val

Repeat the same command to resume a stopped run.
"""


def add(commands: Any) -> None:
    """Adds the command's arguments."""
    parser = commands.add_parser(
        "eval",
        help="measure the accuracy and time of strategies on your model and images",
        description="Measures settings of a model on images, against the dense model of the same run and controls.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help=arguments.MODEL)
    parser.add_argument("settings", metavar="SETTING", nargs="*", help="see below; the dense model comes first anyway")
    _add_data(parser)
    _add_model(parser)
    _add_runs(parser)
    parser.set_defaults(run=run, resume="Repeat the same command to resume.")


def _add_data(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("images")
    group.add_argument("--data", metavar="PATH", required=True, help="see below")
    arguments.add_labels(group)
    group.add_argument("--probe", choices=("linear", "knn"), help="for backbones without a head")
    group.add_argument("--train", metavar="PATH", help="training images of the probe (default: folds of --data)")


def _add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    arguments.add_weights(group)
    group.add_argument("--amp", choices=("bfloat16", "float16"), help="run under autocast")


def _add_runs(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("run")
    group.add_argument("--out", metavar="DIR", default="outputs/eval", help="predictions and report (%(default)s)")
    group.add_argument("--batch-size", metavar="N", type=int, default=32, help="%(default)s")
    group.add_argument("--chunk", metavar="N", type=int, default=128, help="images between two saves (%(default)s)")
    group.add_argument("--workers", metavar="N", type=int, default=2, help="threads that read images (%(default)s)")
    group.add_argument(
        "--seed", metavar="N", type=int, default=0, help="seed of subsets, folds and intervals (%(default)s)"
    )
    group.add_argument("--no-controls", action="store_true", help="leave out random, grid pooling and smaller image")
    group.add_argument("--no-time", action="store_true", help="measure no time and no memory")
    group.add_argument("--json", action="store_true", help="print the report as JSON")
    group.add_argument("--quiet", action="store_true", help="no progress")


def run(options: argparse.Namespace) -> int:
    """Runs the evaluation and prints its report."""
    from tokengraph.evaluate.evaluate import evaluate
    from tokengraph.evaluate.ranks import find_ranks

    how = arguments.runs(options, time=not options.no_time, memory=not options.no_time)
    settings = [plan for text in options.settings for plan in _settings(text)]
    data, train = _images(options.data, options), None if options.train is None else _images(options.train, options)
    report = evaluate(
        arguments.source(options),
        settings,
        data,
        out=options.out,
        controls=not options.no_controls,
        probe=options.probe,
        train=train,
        options=how,
    )
    if find_ranks().first:
        print(report.json() if options.json else report.markdown())
        print(f"Written to {options.out}", file=sys.stderr)
    asked = [row for row in report.rows if row.kind == "setting"]
    return int(bool(asked) and all(row.reason for row in asked))  # 1 if every setting failed


def _settings(text: str) -> list[Any]:
    """Reads one setting, or the settings in a JSON file."""
    if text.endswith(".json") and Path(text).is_file():
        try:
            found = json.loads(Path(text).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"Expected settings as JSON in {text} (got {error}).") from error
        return found if isinstance(found, list) else [found]
    return [text]


def _images(path: str, options: argparse.Namespace) -> Any:
    return arguments.images(path, labels=options.labels, synsets=options.synsets)
