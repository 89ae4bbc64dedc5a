"""A table of the best setting, the smaller image and random pruning at each cost, against the dense model."""

from __future__ import annotations

from collections.abc import Sequence

from truth.results import Line

MAIN = ("top1", "biou", "probe_as_is", "class_cosine")  # the figure that a task is judged by: the first it has
CONTROLS = ("resolution", "random", "grid-pool")


def main_metric(lines: Sequence[Line]) -> str | None:
    """Returns the main figure of a table; ``None`` if no row has one."""
    return next((key for key in MAIN if any(key in line.get("metrics", {}) for line in lines)), None)


def leaders(lines: Sequence[Line]) -> str:
    """Returns a Markdown table with a row for each wanted cost; empty if there is nothing to compare.

    A star marks rows whose paired interval of the difference from dense includes 0: no loss is proved, nor excluded.
    """
    metric = main_metric(lines)
    there = [line for line in lines if metric in line.get("metrics", {}) and not line.get("reason")]
    costs = sorted({line["wanted"] for line in there if line.get("wanted")}, reverse=True)
    if metric is None or not costs:
        return ""
    rows = [["cost", "best setting", "best with a smaller image", "smaller image alone", "random"], ["---"] * 5]
    for cost in costs:
        rows.append([f"{cost:g}", *(_best(group, metric) for group in groups(there, metric, cost))])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def groups(lines: Sequence[Line], metric: str, cost: float) -> tuple[list[Line], ...]:
    """Returns the rows with a figure at a cost: strategies, with a smaller image, smaller images alone, and random."""
    there = [line for line in lines if metric in line.get("metrics", {}) and not line.get("reason")]
    here = [line for line in there if line.get("wanted") == cost]
    alone = [line for line in there if line.get("strategy") == "resolution" and _near(line, cost)]
    return (
        [line for line in here if line["strategy"] not in CONTROLS and "+" not in line["strategy"]],
        [line for line in here if "+" in line["strategy"]],
        alone,
        [line for line in here if line["strategy"] == "random"],
    )


def _near(line: Line, cost: float) -> bool:
    """Whether a smaller image counts at a cost: it was measured for it, or (in a search) costs about that much."""
    return line["wanted"] == cost if line.get("wanted") else abs((line.get("cost") or 0) - cost) <= 0.05


def _best(lines: Sequence[Line], metric: str) -> str:
    if not lines:
        return ""
    line = max(lines, key=lambda line: line["metrics"][metric])
    value = line["metrics"][metric]
    shown = f"{value:.4f}" if metric == "class_cosine" else f"{100 * value:.1f}"
    difference = line.get("differences", {}).get(metric)
    star = " *" if difference and difference["low"] <= 0 <= difference["high"] else ""
    return f"`{line['setting']}` {shown}{star}"
