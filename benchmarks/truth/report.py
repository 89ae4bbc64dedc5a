"""Markdown of results: one table a task and group, every row with its interval, failures with their reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from truth.leaders import leaders, main_metric
from truth.library_code import digest
from truth.plot import plot
from truth.results import Line, read, versions, write
from truth.sources import SOURCES
from truth.tasks import TASKS
from truth.weights import NAME

SCORES = {  # percentages, with their differences from the dense model
    "top1": "top-1",
    "probe_as_is": "probe as it is",
    "probe_mapped": "probe, features mapped",
    "probe_refit": "probe fitted again",
    "miou": "IoU",
    "biou": "boundary IoU",
}
TITLES = {**SCORES, "class_cosine": "cosine of the class token"}
STAR = (
    "`*`: its paired interval of the difference from dense holds 0, so no loss is shown (nor is it shown that none is)."
)
COSINES = {"class_cosine": "class", "class_worst": "class, worst 5 %", "patch_cosine": "patches"}
HEAD = f"""# What strategies cost in accuracy, measured on real features

Written by `make truth` (`python benchmarks/truth report`); do not edit. Training-free. Each table names its model:
{NAME} (provenance inferred, not proved: its figures stand
beside no published ones), official weights where a hub was reachable, or our own small ViT.
Cost is the share of the dense model's multiply-adds in its blocks, choosing and merging included (`tokengraph.cost`).
Brackets are 95 % bootstrap intervals over images; differences are paired with the dense model on the same images, and
p is McNemar's. Each task names its images; the dense model of the same run stands first.
*Probe, features mapped* is the dense model's probe as it is, on features that a linear map brings back to the dense
ones (`tokengraph.realign`): fitted without labels, on the images that the probe is fitted on.
A search chooses settings on the images that it reports, so its rows flatter them.
Rows say which commit made them. Where a default changed since, the row has the value that it was measured with.
"""


def scores(lines: Sequence[Line]) -> dict[str, float]:
    """How near each setting's features stay to the dense ones: the mean cosine of class token and patches."""
    found = {}
    for line in lines:
        metrics = line.get("metrics", {})
        if not line.get("reason") and {"class_cosine", "patch_cosine"} <= set(metrics):
            found[line["setting"]] = (metrics["class_cosine"] + metrics["patch_cosine"]) / 2
    return found


def best_rows(lines: Sequence[Line]) -> list[Line]:
    """Rows of a search: the nearest to dense of each strategy at each cost, and those that no strategy has."""
    score, found = scores(lines), {}
    for line in lines:
        strategy = "combined" if "+" in line.get("strategy", "") else line.get("strategy")
        wanted = None if strategy == "resolution" else line.get("wanted")
        key = (strategy, wanted) if wanted else (line["setting"], None)  # without a wanted cost, each has a row
        if key not in found or score.get(line["setting"], 0) > score.get(found[key]["setting"], 0):
            found[key] = line
    return list(found.values())


def table(lines: Sequence[Line]) -> str:
    """One Markdown table: the dense model, then by falling cost."""
    metrics = [key for key in SCORES if any(key in line.get("metrics", {}) for line in lines)]
    cosines = [key for key in COSINES if any(key in line.get("metrics", {}) for line in lines)]
    timed = any("speed" in line for line in lines)
    head = ["setting", "schedule", "cost"]
    for key in metrics:
        head += [SCORES[key], "minus dense"]
    head += [COSINES[key] for key in cosines] + (["time / dense"] if timed else [])
    rows = [_row(line, metrics, cosines) + ([_time(line)] if timed else []) for line in sorted(lines, key=_order)]
    return "\n".join(["| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows]])


def _order(line: Line) -> tuple[bool, str, str, float]:
    """Dense first, then by falling cost; rows of curves by strategy and parameter, in the order they were made in."""
    if line["group"] == "curves":
        return line["kind"] != "dense", line.get("strategy", ""), line.get("shape", ""), 0.0
    return line["kind"] != "dense", "", "", -(line.get("cost") or 0.0)


def _row(line: Line, metrics: Sequence[str], cosines: Sequence[str]) -> list[str]:
    cost = line.get("cost")
    cells = [f"`{line['setting']}`", line.get("shape", ""), "" if cost is None else f"{cost:.2f}"]
    if line.get("reason"):
        return [*cells, f"failed: {line['reason']}", *[""] * (2 * len(metrics) + len(cosines) - 1)]
    for key in metrics:
        cells += [_figure(line, key), _difference(line.get("differences", {}).get(key))]
    return cells + [f"{line['metrics'][key]:.4f}" if key in line["metrics"] else "" for key in cosines]


def _time(line: Line) -> str:
    """Time over the dense model's, median and quartiles of rounds in turn."""
    if "speed" not in line:
        return ""
    middle, low, high = line["speed"]
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def _figure(line: Line, key: str) -> str:
    if key not in line["metrics"]:
        return ""
    low, high = line.get("intervals", {}).get(key, (None, None))
    interval = "" if low is None else f" [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{100 * line['metrics'][key]:.1f}{interval}"


def _difference(found: Mapping[str, Any] | None) -> str:
    if not found:
        return "-"
    text = f"{100 * found['value']:+.1f} [{100 * found['low']:+.1f}, {100 * found['high']:+.1f}]"
    return text if found.get("p") is None else f"{text}, p = {found['p']:.2g}"


def report(results: Path) -> str:
    """The whole page, of every file of results that is there."""
    parts = [HEAD, _facts(results)]
    for name, task in TASKS.items():
        lines = read(results / f"{name}.jsonl")
        if lines:
            parts.append(f"## {name}\n\n{task.says[:1].upper()}{task.says[1:]}.\n")
        for model, group, count in dict.fromkeys((line["model"], line["group"], line["images"]) for line in lines):
            own = [line for line in lines if (line["model"], line["group"], line["images"]) == (model, group, count)]
            parts.append(f"### {group}, {count} images\n\n{model[:1].upper()}{model[1:]}.\n")
            if group == "search":
                parts.append("The best of each strategy at each cost; the file has all rows.\n")
                own = best_rows(own)
            elif led := leaders(own):
                parts.append(f"{led}\n\nBy {TITLES[main_metric(own)]}. {STAR}\n")
            parts.append(f"{table(own)}\n")
    return "\n".join(parts)


def matplotlib() -> bool:
    """Whether plots can be drawn."""
    return find_spec("matplotlib") is not None


def _facts(results: Path) -> str:
    commits = sorted({line.get("commit", "") for file in results.glob("*.jsonl") for line in read(file)} - {""})
    rows = [line for file in results.glob("*.jsonl") for line in read(file) if "code" in line]
    older = sum(line["code"] != digest() for line in rows)
    said = ", ".join(f"{name} {number}" for name, number in versions().items())
    files = "\n".join(f"* {s.name} {s.version} ({s.licence}): {s.use}" for s in SOURCES if s.kind != "installed")
    stale = f"{older} of {len(rows)} rows come from other code of the library than this page's (`--fresh` renews them)."
    told = f"Commits: {', '.join(commits) or 'none'}. Versions: {said}."
    return "\n\n".join([told, *([stale] if older else []), files]) + "\n"


def write_report(results: Path) -> Path:
    """Writes the page beside the files of results, and a file that says which packages they came from."""
    page = results / "README.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(report(results), encoding="utf-8")
    for name in TASKS:
        lines = read(results / f"{name}.jsonl")
        for group in {line["group"] for line in lines} - {"search", "curves"}:
            own = [line for line in lines if line["group"] == group]
            own = [line for line in own if line["images"] == max(line["images"] for line in own)]
            if matplotlib():
                plot(own, f"{name}, {group}", results / f"{name}-{group}.png")
    write(results / "packages.jsonl", [{"name": s.name, "version": s.version, "sha256": s.sha256} for s in SOURCES])
    return page
