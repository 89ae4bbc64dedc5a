"""``tokengraph backends``: lists the optional backends, and why some are not usable."""

from __future__ import annotations

import argparse
from typing import Any

from tokengraph.optional import backends, optional


def add(commands: Any) -> None:
    """Adds the command's arguments."""
    parser = commands.add_parser("backends", help="list the optional backends, and why some are not usable")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints the table."""
    table = optional("rich.table").Table(title="Engines", title_justify="left", box=optional("rich.box").SIMPLE_HEAD)
    for column in ("name", "there", "version", "note"):
        table.add_column(column)
    for name, engine in backends().items():
        there = "[green]yes[/]" if engine.available else "[red]no[/]"
        table.add_row(name, there, engine.version or "", optional("rich.markup").escape(engine.reason))
    optional("rich.console").Console().print(table)
    return 0
