"""How many images without labels a map of features needs: the dense model's probe on mapped features."""

from __future__ import annotations

from pathlib import Path

import tokengraph as tg
from tokengraph.evaluate.options import Options
from tokengraph.evaluate.report import Row
from tokengraph.evaluate.store import slug
from truth.library_code import digest
from truth.results import commit, line_of, write
from truth.run import ROOT
from truth.tasks import TASKS

TASK = "elpv-224-defect"
SETTINGS = ("resolution:168", "resolution:140", "tome:20,reduce=mlerp", "ailurus:{3: 0.5}")
NUMBERS = (30, 100, 300, 640)
HEAD = """# Features mapped back to dense ones: how many images without labels the map needs

Written by `python benchmarks/truth realign`; do not edit. Defects of solar cells by the dense model's linear probe, in
five folds; the map (`tokengraph.realign`) is fitted on so many images of the other folds, evenly spaced. Differences
from the dense model are paired, with 95 % bootstrap intervals.
"""


def realigned(folder: Path, results: Path, limit: int | None = None) -> Path:
    """Measures the settings with maps of each number of images; predictions are made once and kept.

    Args:
        folder: Of the packages; predictions go to its ``runs``.
        results: ``realigned.jsonl`` and ``realigned.md`` go here.
        limit: Images; by default those of the task's subset.
    """
    task = TASKS[TASK]
    source, (data, _) = task.source(folder), task.images(folder, limit or task.limit)
    out = folder / "runs" / slug(f"realign {len(data)} {digest()} {source.name}")
    about = {"model": source.name, "group": "realign", "images": len(data), "commit": commit(ROOT), "code": digest()}
    lines, cells = [], {}
    for number in NUMBERS:
        options = Options(time=False, memory=False, map_images=number)
        report = tg.evaluate(source, SETTINGS, data, out=out, controls=False, probe=task.probe, options=options)
        for row in report.rows:
            lines.append(line_of(row, about | {"map_images": number}))
            cells.setdefault(row.name, []).append(row)
    write(results / "realigned.jsonl", lines)
    page = results / "realigned.md"
    titles = ["setting", "cost", "as it is", *(f"map of {n} images" for n in NUMBERS)]
    table = [titles, ["---"] * len(titles)]
    for name, rows in cells.items():
        table.append([f"`{name}`", f"{rows[0].cost or 1:.2f}", _figure(rows[0], "probe_as_is")])
        table[-1] += [_figure(row, "probe_mapped") for row in rows]
    text = "\n".join("| " + " | ".join(line) + " |" for line in table)
    model = f"{source.name[:1].upper()}{source.name[1:]}, {len(data)} images."
    page.write_text(f"{HEAD}\n{model}\n\n{text}\n", encoding="utf-8")
    return page


def _figure(row: Row, key: str) -> str:
    value, change = row.metrics[key], row.differences.get(key)
    told = "" if change is None else f" ({100 * change.value:+.1f} [{100 * change.low:+.1f}, {100 * change.high:+.1f}])"
    return f"{100 * value:.1f}{told}"
