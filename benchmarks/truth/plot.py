"""Plots of results: each task's figure against the cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokengraph.evaluate.report import Row
from tokengraph.viz.pareto import NAMES, plot_pareto
from truth.results import Line


def rows_of(lines: Sequence[Line]) -> list[Row]:
    """The rows of a report again, as far as a plot needs them."""
    return [
        Row(
            line["setting"],
            line["kind"],
            line.get("reason", ""),
            metrics=line.get("metrics", {}),
            intervals={key: (low, high) for key, (low, high) in line.get("intervals", {}).items()},
            cost=line.get("cost"),
        )
        for line in lines
    ]


def plot(lines: Sequence[Line], title: str, file: Path) -> bool:
    """Plots the rows of one table to a file; says whether there was anything to plot."""
    metric = next((key for key in NAMES if any(key in line.get("metrics", {}) for line in lines)), None)
    if metric is None:
        return False
    file.parent.mkdir(parents=True, exist_ok=True)
    figure = plot_pareto(rows_of(lines), metric, title=title, subtitle=lines[0]["model"])
    figure.savefig(file, dpi=110)
    return True
