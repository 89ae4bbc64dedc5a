"""``tokengraph strategies`` lists the strategies, and what each reads, does and needs."""

from __future__ import annotations

import argparse
import inspect
import json
from typing import Any

from tokengraph.cli.table import table

EPILOG = """\
acts    where in a block: before it, inside (between attention and MLP), after it, or ahead by its attention map
reads   of attention: nothing, keys, class (the class token's row) or map (the whole map; no fused kernel there)
graphs  yes: works on graphs without a model too (tg.coarsen, tokengraph graph --coarsen)

example:
  tokengraph strategies --json
"""


def add(commands: Any) -> None:
    """Adds the command's arguments."""
    parser = commands.add_parser(
        "strategies",
        help="list the strategies, and what each reads and needs",
        description="Lists the registered strategies.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with options and their defaults")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints the table."""
    from tokengraph.select.base import registry

    found = [describe(name, kind) for name, kind in sorted(registry().items())]
    if options.json:
        print(json.dumps(found))
        return 0
    columns = ["name", "aliases", "acts", "reads", "merges", "graphs", "what it does"]
    rows = [
        [
            f["name"],
            ", ".join(f["aliases"]),
            f["acts"],
            f["reads"],
            *(_word(f[k]) for k in ("merges", "graphs")),
            f["does"],
        ]
        for f in found
    ]
    print(table(columns, rows))
    return 0


def describe(name: str, kind: Any) -> dict[str, Any]:
    """Returns the facts of a strategy by its defaults."""
    try:
        select = kind()
    except Exception:  # a strategy of a user's own may need arguments
        select = kind
    parameters = [p for n, p in inspect.signature(kind).parameters.items() if n != "self"]
    does = (inspect.getdoc(kind) or "").split("\n\n")[0].replace("\n", " ")
    reads = select.reads if isinstance(select.reads, str) else "keys"
    learns = bool(select.learns)
    return {
        "name": name,
        "class": kind.__name__,
        "aliases": sorted(kind.aliases),
        "acts": select.placement if isinstance(select.placement, str) else "inside",
        "reads": reads,
        "merges": bool(select.merges) if not isinstance(select.merges, property) else True,
        "graphs": reads in ("nothing", "keys") and not learns,
        "learns": learns,
        "needs_grid": bool(select.needs_grid),
        "ragged": bool(select.ragged),
        "options": {p.name: None if p.default is p.empty else repr(p.default) for p in parameters},
        "does": does,
    }


def _word(value: bool) -> str:
    return "yes" if value else "no"
