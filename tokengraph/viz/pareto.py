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
UNNAMED = ("random", "grid-pool")  # controls: a colour and a mark say enough
MARKS = {"dense": "*", "resolution": "s", "random": "v", "grid-pool": "D"}
ROUNDS = "o^PX<>h"  # marks of strategies: another one each time that the colours begin again
CROWD = 24  # with more points, only those that no cheaper one equals have names


def plot_pareto(rows: Sequence[Any], metric: str, *, title: str = "", subtitle: str = "") -> Figure:
    """Plots a figure of each setting against its share of the dense model's multiply-adds.

    Settings of one strategy share colour and mark; controls are grey and amber; whiskers are the rows' intervals; the
    line joins settings that no cheaper one equals. Of many settings only these, dense and smaller images have names.

    Args:
        rows: With ``name``, ``reason``, ``metrics``, ``intervals`` and ``cost``, as a report has them. Rows that
            failed, or lack the figure or the cost, are left out.
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
    styles = _styles(families)
    for row in there:
        _point(ax, row, metric, factor, *styles[family(row.name)])
    _axes(ax, metric)
    best = _frontier(ax, [(r.cost, factor * r.metrics[metric]) for r in there])
    named = [r for r in there if family(r.name) not in UNNAMED]
    if len(named) > CROWD:
        named = [r for r in named if family(r.name) in MARKS or (r.cost, factor * r.metrics[metric]) in best]
    _labels(ax, named, metric, factor)
    _legend(figure, there, styles)
    return figure


def family(name: str) -> str:
    """What a setting's points share: its strategy, ``"dense"``, ``"resolution"`` or ``"model"``."""
    last = name.split("+")[-1]
    return last.partition(":")[0].partition(",")[0].partition("(")[0].strip().lower()


def smaller(name: str) -> bool:
    """Whether a setting removes tokens of another resolution or model."""
    return "+" in name and family(name) not in ("resolution", "model")


def _styles(families: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Returns colour and mark of each family; no two are the same."""
    others = [name for name in families if name not in COLORS]
    found = {name: (COLORS[name], MARKS.get(name, "o")) for name in families if name in COLORS}
    for number, name in enumerate(others):
        turn, place = divmod(number, len(OTHERS))
        found[name] = OTHERS[place], ROUNDS[turn % len(ROUNDS)]
    return {name: found[name] for name in families}


def _legend(figure: Figure, rows: Sequence[Any], styles: dict[str, tuple[str, str]]) -> None:
    line = optional("matplotlib.lines").Line2D
    kept = {"linestyle": "", "markersize": 7}
    handles = [line([], [], color=c, marker=m, label=f, **kept) for f, (c, m) in styles.items()]
    if any(smaller(r.name) for r in rows):
        hollow = {"color": INK, "marker": "o", "linestyle": "", "markersize": 7, "markerfacecolor": "white"}
        handles.append(line([], [], label="on a smaller image", **hollow))
    columns = min(5 if len(handles) > 12 else 6, len(handles))
    size = 8 if len(handles) > 12 else 9
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=size, labelcolor=INK
    )


def _frontier(ax: Axes, points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Draws a broad line through the points that no cheaper one equals, and returns them."""
    best, line = float("-inf"), []
    for cost, value in sorted(points, key=lambda p: (p[0], -p[1])):
        if value > best:
            best = value
            line.append((cost, value))
    limits = ax.get_xlim(), ax.get_ylim()
    ax.step(
        *zip(*line, (limits[0][1], best), strict=True),
        where="post",
        color="#eef1f6",
        linewidth=7,
        zorder=0.4,
        solid_capstyle="round",
    )
    ax.set(xlim=limits[0], ylim=limits[1])
    return line


def _point(ax: Axes, row: Any, metric: str, factor: float, color: str, mark: str) -> None:
    value = factor * row.metrics[metric]
    if metric in row.intervals:
        low, high = (factor * v for v in row.intervals[metric])
        ax.plot([row.cost, row.cost], [low, high], color=color, linewidth=1, alpha=0.35, zorder=1)
    size = 150 if mark == "*" else 46
    face, edge = ("white", color) if smaller(row.name) else (color, "white")
    width = 1.4 if smaller(row.name) else 0.8
    ax.scatter([row.cost], [value], s=size, marker=mark, facecolor=face, edgecolor=edge, linewidth=width, zorder=2)


def _labels(ax: Axes, rows: Sequence[Any], metric: str, factor: float) -> None:
    """A short name beside each point, moved down where another label is near."""
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    wide, tall = right - left, high - low
    placed: list[tuple[float, float, float]] = []
    for row in sorted(rows, key=lambda r: -r.metrics[metric]):
        value, text = factor * row.metrics[metric], _short(row.name)
        length = 0.0115 * wide * len(text)
        x = row.cost + 0.014 * wide
        if x + length > right:
            x = row.cost - 0.014 * wide - length
        y = value
        while any(abs(y - b) < 0.03 * tall and x < a + c and a < x + length for a, b, c in placed) and y > low:
            y -= 0.006 * tall
        placed.append((x, y, length))
        moved = abs(y - value) > 0.015 * tall
        arrow = {"arrowstyle": "-", "color": "#c8ced8", "linewidth": 0.7} if moved else None
        ax.annotate(text, (row.cost, value), (x, y), fontsize=7.5, color=FAINT, va="center", arrowprops=arrow)


def _short(name: str) -> str:
    text = name.replace("resolution:", "").replace("model:", "")
    text += " px" if text.isdigit() else ""
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
