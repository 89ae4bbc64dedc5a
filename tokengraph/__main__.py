"""The command line: ``tokengraph demo`` and ``tokengraph backends``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tokengraph.optional import optional


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: The arguments after the program's name; by default those of this process.

    Returns:
        The exit status: 0, or 1 after an error, whose message is printed.
    """
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except (ImportError, OSError, ValueError) as error:
        print(f"tokengraph: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    from tokengraph import __version__

    parser = argparse.ArgumentParser(prog="tokengraph", description="Tokens of a vision transformer as a graph.")
    parser.add_argument("--version", action="version", version=f"tokengraph {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    demo = commands.add_parser("demo", help="make and coarsen a graph of a photograph's tokens, and run a faster model")
    demo.add_argument("--image", metavar="PATH", type=Path, help="your photograph (default: one from scikit-image)")
    demo.add_argument("--model", metavar="NAME", default="vit_small_patch16_224.dino", help="timm name (%(default)s)")
    demo.add_argument("--size", metavar="PX", type=int, default=448, help="side of the image in pixels (%(default)s)")
    demo.add_argument("--out", metavar="DIR", type=Path, default=Path("outputs/demo"), help="pictures (%(default)s)")
    demo.add_argument("--no-pretrained", action="store_true", help="use random weights")
    demo.set_defaults(run=_demo)
    backends = commands.add_parser("backends", help="list the optional backends, and why some are not usable")
    backends.set_defaults(run=_backends)
    return parser


def _demo(options: argparse.Namespace) -> int:
    optional("rich")
    from tokengraph.demo import demo

    demo(options.image, model=options.model, size=options.size, out=options.out, pretrained=not options.no_pretrained)
    return 0


def _backends(options: argparse.Namespace) -> int:
    from tokengraph import backends

    table = optional("rich.table").Table(title="Engines", title_justify="left", box=optional("rich.box").SIMPLE_HEAD)
    for column in ("name", "there", "version", "note"):
        table.add_column(column)
    for name, engine in backends().items():
        there = "[green]yes[/]" if engine.available else "[red]no[/]"
        table.add_row(name, there, engine.version or "", optional("rich.markup").escape(engine.reason))
    optional("rich.console").Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
