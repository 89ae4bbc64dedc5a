"""Writes the tables of the README that depend on results: ``make readme``.

"Which strategy when" stands between its marks, and the table of accuracy between those of ``make truth TRUTH=report``.
"""

from __future__ import annotations

import sys

import tokengraph as tg
from website.measured import ROOT, TRUTH, names_of, number, tables
from website.strategies import BLOCK, CHANNELS, HEAD, KEPT, TOKENS
from website.text import to_markdown

BEGIN, END = "<!-- when: begin -->", "<!-- when: end -->"
COST = 0.65
JUDGED = ("photographs", "patch_cosine")
WHEN = {
    "tome": "first of all: classifiers, one line, no block loses its fused kernel",
    "atc": "maps matter more than choosing time",
    "dpc-knn": "one or a few large cuts",
    "ailurus": "many patches: one cut, linear in time and memory",
    "mctf": "clusters should weigh what attention reads",
    "mpm": "easy images should cost less: a threshold decides",
    "expedite": "the last blocks or a dense head need every patch",
    "cubist-merge": "the grid must stay a grid",
    "topk": "only the class token matters; training may follow",
    "random": "as the control that a method has to beat",
}


def main() -> int:
    """Writes both tables."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from truth.readme import write_readme

    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    readme.write_text(f"{before}{BEGIN}\n{when()}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    return 0 if write_readme(TRUTH) else 1


def when() -> str:
    """Returns the table: a row for each strategy of ``WHEN``, and one for the smaller image."""
    table = next((t for t in tables() if (t.task, t.metric) == JUDGED), None)
    rows = [["strategy", "use it when", "choosing costs", f"patches at {COST:g}"], ["---"] * 4]
    for name, use in WHEN.items():
        found = table and table.best(COST, *names_of(name))
        kind = tg.registry()[name]
        figure = number(found[0] if found else None, JUDGED[1])
        rows.append([f"`{kind.__name__}`", use, share(name), figure])
    smaller = table and table.best(COST, "resolution")
    figure = number(smaller[0] if smaller else None, JUDGED[1])
    rows.append(["a smaller image", "the task does not need the detail; or with a little ToMe", "–", figure])
    return to_markdown("\n".join("| " + " | ".join(row) + " |" for row in rows))


def share(name: str) -> str:
    """Operations of one choice as a share of a block's, by the strategy's own count."""
    cost = tg.resolve(name).cost(TOKENS, KEPT, CHANNELS, HEAD)
    if cost is None:
        return "–"
    return f"{100 * cost.flops / BLOCK:.1f} %" if cost.flops else "nothing"


if __name__ == "__main__":
    sys.exit(main())
