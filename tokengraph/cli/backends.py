"""``tokengraph backends``: lists the optional backends, and why some are not usable."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from tokengraph.cli.table import table
from tokengraph.optional import backends


def add(commands: Any) -> None:
    """Adds the command's arguments."""
    parser = commands.add_parser("backends", help="list the optional backends, and why some are not usable")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints the table."""
    found = list(backends().values())
    if options.json:
        print(json.dumps([asdict(backend) for backend in found]))
        return 0
    rows = [[b.name, "yes" if b.available else "no", b.version or "", b.reason] for b in found]
    print(table(["name", "there", "version", "note"], rows))
    return 0
