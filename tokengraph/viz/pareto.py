"""Accuracy against cost: where each setting lies, and which are beaten by none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tokengraph.optional import optional
from tokengraph.viz.figure import AMBER, BLUE, FAINT, GREY, INK, ROSE, RULE, TEAL, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = {
    "top1": "top-1 accuracy, %",
    "miou": "mean IoU, %",
    "probe_as_is": "accuracy of the dense model's probe, %",
    "agreement": "agreement with the dense model, %",
    "class_cosine": "cosine of the class token to the dense model",
}
PERCENT = ("top1", "miou", "probe_as_is", "agreement")
OTHERS = (BLUE, TEAL, ROSE, "#7a5cc0", "#4c9f38", "#b5651d", "#0e7c9b")
COLORS = {"dense": INK, "resolution": AMBER, "random": GREY, "grid-pool": "#c3c9d3"}
MARKS = {"dense": "*", "resolution": "s", "random": "v", "grid-pool": "D"}


def plot_pareto(rows: Sequence[Any], metric: str, *, title: str = "", subtitle: str = "") -> Figure:
    """Plots a figure of each setting against its share of the dense model's multiply-adds.

    Settings of one strategy share a colour; controls are grey and amber; whiskers are the rows' intervals; the line
    joins settings that no cheaper one equals.

    Args:
        rows: With ``name``, ``reason``, ``metrics``, ``intervals`` and ``cost``, as a report has them. Rows that failed,
            or lack the figure or the cost, are left out.
        metric: The figure, by name.
        title: Above the figure.
        subtitle: Below the title, fainter.

    Raises:
        ValueError: If no row has figure and cost.
    """
    there = [r for r in rows if not r.reason and r.cost is not None and metric in r.metrics]
    if not there:
        raise ValueError(f"Expected rows with a cost and {metric!r} (got none).")
    figure = new_figure(8.4, 5.6 + 0.5 * bool(title), title, subtitle)
    ax = figure.subplots()
    factor = 100.0 if metric in PERCENT else 1.0
    families = list(dict.fromkeys(family(r.name) for r in there))
    free = iter(OTHERS * (1 + len(families)))
    colors = {name: COLORS.get(name) or next(free) for name in families}
    _frontier(ax, [(r.cost, factor * r.metrics[metric]) for r in there])
    for name in families:
        for row in (r for r in there if family(r.name) == name):
            _point(ax, row, metric, factor, colors[name], MARKS.get(name, "o"))
    _labels(ax, there, metric, factor)
    _axes(ax, metric)
    line = optional("matplotlib.lines").Line2D
    handles = [
        line([], [], color=colors[f], marker=MARKS.get(f, "o"), linestyle="", markersize=7, label=f) for f in families
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(6, len(handles)), frameon=False, fontsize=9, labelcolor=INK
    )
    return figure


def family(name: str) -> str:
    """What a setting's points share: its strategy; ``"+ smaller"`` where the image is smaller too."""
    parts = name.split("+")
    last = parts[-1].partition(":")[0].partition(",")[0].partition("(")[0].strip().lower()
    return f"{last} + smaller" if len(parts) > 1 and last != "resolution" else last


def _frontier(ax: Axes, points: list[tuple[float, float]]) -> None:
    best, line = float("-inf"), []
    for cost, value in sorted(points, key=lambda p: (p[0], -p[1])):
        if value > best:
            best = value
            line.append((cost, value))
    ax.step(*zip(*line, strict=True), where="post", color=RULE, linewidth=5, zorder=0.5, solid_capstyle="round")


def _point(ax: Axes, row: Any, metric: str, factor: float, color: str, mark: str) -> None:
    value = factor * row.metrics[metric]
    if metric in row.intervals:
        low, high = (factor * v for v in row.intervals[metric])
        ax.plot([row.cost, row.cost], [low, high], color=color, linewidth=1, alpha=0.45, zorder=1)
    size = 150 if mark == "*" else 46
    ax.scatter([row.cost], [value], s=size, marker=mark, color=color, edgecolor="white", linewidth=0.8, zorder=2)


def _labels(ax: Axes, rows: Sequence[Any], metric: str, factor: float) -> None:
    """A short name beside each point, moved up or down where another label is near."""
    values = [factor * r.metrics[metric] for r in rows]
    tall = max(max(values) - min(values), 1e-9)
    wide = max(max(r.cost for r in rows) - min(r.cost for r in rows), 1e-9)
    placed: list[tuple[float, float, float]] = []
    for row, value in sorted(zip(rows, values, strict=True), key=lambda pair: -pair[1]):
        text = _short(row.name)
        x, y, length = row.cost + 0.012 * wide, value, 0.0125 * wide * len(text)
        while any(abs(y - b) < 0.034 * tall and x < a + c and a < x + length for a, b, c in placed):
            y -= 0.01 * tall
        placed.append((x, y, length))
        ax.annotate(
            text,
            (row.cost, value),
            (x, y),
            fontsize=7.5,
            color=FAINT,
            va="center",
            arrowprops={"arrowstyle": "-", "color": RULE, "linewidth": 0.7} if abs(y - value) > 0.02 * tall else None,
        )


def _short(name: str) -> str:
    text = name.replace("resolution:", "").replace("grid-pool:", "").replace("random:", "")
    return text if len(text) <= 34 else f"{text[:31]}..."


def _axes(ax: Axes, metric: str) -> None:
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(RULE)
    ax.grid(color=RULE, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(length=0, labelsize=9, labelcolor=FAINT)
    ax.set_xlabel("multiply-adds of the blocks, share of dense, merging included", fontsize=9, color=FAINT)
    ax.set_ylabel(NAMES.get(metric, metric), fontsize=9, color=FAINT)
    ax.margins(x=0.14, y=0.08)
