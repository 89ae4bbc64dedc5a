"""The results table of the project's README, made from the files of results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from truth.leaders import groups, main_metric
from truth.results import Line, read
from truth.run import ROOT
from truth.tasks import TASKS

BEGIN, END = "<!-- truth: begin -->", "<!-- truth: end -->"
CHOOSING = ("fashion-train",)  # serves to choose schedules only
SHARES = (0.65, 0.5, 0.35)
IN_README = (0.5,)  # the results page has the others
GROUPS = ("headline", "frontier", "search")  # a task's rows are of the first that it has
SHORT = {
    "top1": "top-1",
    "biou": "boundary IoU",
    "probe_as_is": "probe as it is",
    "class_cosine": "cosine of class token",
}
HEAD = (
    "task: figure",
    "dense",
    "cost",
    "best at full size",
    "smaller image and merging",
    "smaller image",
    "random",
)


def readme_table(results: Path, shares: Sequence[float] = SHARES) -> str:
    """Returns a Markdown table: for each task and cost the best settings beside the controls; empty without results."""
    rows = [list(HEAD), ["---"] * len(HEAD)]
    for name in (name for name in TASKS if name not in CHOOSING):
        lines = _own(read(results / f"{name}.jsonl"))
        metric = main_metric(lines)
        dense = next((line for line in lines if line["kind"] == "dense"), None)
        if metric is None or dense is None:
            continue
        for share in shares:
            cells = [_cell(group, metric) for group in groups(lines, metric, share)]
            if any(cells):
                told = f"{name} ({dense['images']} images): {SHORT[metric]}"
                rows.append([told, _number(dense, metric), f"{share:g}", *(cell or "-" for cell in cells)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) if len(rows) > 2 else ""


def write_readme(results: Path, readme: Path = ROOT / "README.md") -> bool:
    """Puts the table between the marks in the README; returns False if there are no marks or no results."""
    text, table = readme.read_text(encoding="utf-8"), readme_table(results, IN_README)
    if BEGIN not in text or END not in text or not table:
        return False
    before, _, rest = text.partition(BEGIN)
    readme.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    return True


def _own(lines: list[Line]) -> list[Line]:
    """The rows of the first group that the task has, of its largest number of images."""
    for group in GROUPS:
        own = [line for line in lines if line["group"] == group]
        if own:
            most = max(line["images"] for line in own)
            return [line for line in own if line["images"] == most]
    return []


def _cell(lines: list[Line], metric: str) -> str:
    if not lines:
        return ""
    line = max(lines, key=lambda line: line["metrics"][metric])
    difference = line.get("differences", {}).get(metric)
    star = " *" if difference and difference["low"] <= 0 <= difference["high"] else ""
    return f"{_number(line, metric)}{star} `{line['setting']}`"


def _number(line: Line, metric: str) -> str:
    value = line["metrics"][metric]
    return f"{value:.3f}" if metric == "class_cosine" else f"{100 * value:.1f}"
