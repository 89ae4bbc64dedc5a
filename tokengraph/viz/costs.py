"""Draws the costs of steps as bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tokengraph.kinds import explains
from tokengraph.optional import optional
from tokengraph.viz.figure import AMBER, BLUE, FAINT, GREY, INK, ROSE, TEAL, new_figure, plain_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
STAGES = {"build": BLUE, "select": TEAL, "reduce": AMBER, "lift": ROSE}
LABEL = {"facecolor": "white", "edgecolor": "none", "pad": 1.2}
FORMS = ("graph", "dense")
KINDS = {"plain": GREY, "attached": BLUE, "ideal": "#b9cdf3"}


@explains
def plot_stage_costs(rows: Sequence[Row], *, title: str = "", subtitle: str = "") -> Figure:
    """Draws stacked bars of each method's stages, as graph operations and as dense matrices, one panel per shape.

    Args:
        rows: One for each stage, with ``method``, ``form`` (``"graph"`` or ``"dense"``), ``shape`` (text), ``stage``
            (``"build"``, ``"select"``, ``"reduce"`` or ``"lift"``), ``median_ms`` and ``iqr_ms``.
        title: Above the figure.
        subtitle: Below the title, fainter.

    Returns:
        A new figure. Whiskers show the interquartile ranges of the stages, added in quadrature.

    Raises:
        ValueError: If there are no rows, a key is missing, or a form or stage is unknown.
    """
    _check(rows, ("method", "form", "shape", "stage", "median_ms", "iqr_ms"), form=FORMS, stage=tuple(STAGES))
    shapes, methods = (list(dict.fromkeys(row[key] for row in rows)) for key in ("shape", "method"))
    columns = min(len(shapes), 2)
    lines = -(-len(shapes) // columns)
    tall = 0.62 * len(methods) + 0.95
    figure = new_figure(6.2 * columns + 0.6, tall * lines + 0.45 + 0.5 * bool(title), title, subtitle)
    axes = list(figure.subplots(lines, columns, squeeze=False, sharey=True).flat)
    for ax, shape in zip(axes, shapes, strict=False):
        _stage_panel(ax, [row for row in rows if row["shape"] == shape], methods)
        ax.set_title(shape, loc="left", fontsize=10.5, fontweight="bold", color=INK)
    for ax in axes[len(shapes) :]:
        ax.set_visible(False)
    patch = optional("matplotlib.patches").Patch
    handles = [patch(color=color, label=stage) for stage, color in STAGES.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9, labelcolor=INK)
    return figure


@explains
def plot_end_to_end(rows: Sequence[Row], *, title: str = "", subtitle: str = "") -> Figure:
    """Compares times of whole models: plain, attached, and ideal (the same token counts without selection).

    Args:
        rows: One for each measurement, with ``name``, ``kind`` (``"plain"``, ``"attached"`` or ``"ideal"``),
            ``median_ms``, ``iqr_ms`` and ``ratio_to_plain``. Rows of one name are drawn together.
        title: Above the figure.
        subtitle: Below the title, fainter.

    Returns:
        A new figure. Whiskers show interquartile ranges.

    Raises:
        ValueError: If there are no rows, a key is missing, or a kind is unknown.
    """
    _check(rows, ("name", "kind", "median_ms", "iqr_ms", "ratio_to_plain"), kind=tuple(KINDS))
    names = list(dict.fromkeys(row["name"] for row in rows))
    figure = new_figure(8.2, 0.34 * len(rows) + 0.3 * len(names) + 0.9 + 0.5 * bool(title), title, subtitle)
    ax = figure.subplots()
    longest = max(row["median_ms"] + row["iqr_ms"] / 2 for row in rows)
    place, ticks = 0.0, []
    for name in names:
        own = [row for row in rows if row["name"] == name]
        ticks.append(place + (len(own) - 1) / 2)
        ideal = next((row["median_ms"] for row in own if row["kind"] == "ideal"), None)
        for row in own:
            ax.barh(place, row["median_ms"], height=0.86, color=KINDS[row["kind"]])
            _whisker(ax, row["median_ms"], row["iqr_ms"], place)
            _label(ax, row["median_ms"] + row["iqr_ms"] / 2, place, longest, _end_to_end_text(row, ideal))
            place += 1
        place += 0.7
    plain = [row["median_ms"] for row in rows if row["kind"] == "plain"]
    if len(plain) == 1:
        ax.axvline(plain[0], color=FAINT, linewidth=1, linestyle=(0, (3, 3)), zorder=0.5)
    ax.set_yticks(ticks, names)
    ax.set(ylim=(place - 0.8, -0.8), xlim=(0, longest * 1.5))
    plain_axes(ax, "median time of a run, ms")
    patch = optional("matplotlib.patches").Patch
    there = [kind for kind in KINDS if any(row["kind"] == kind for row in rows)]
    handles = [patch(color=KINDS[kind], label=kind) for kind in there]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9, labelcolor=INK)
    return figure


def _stage_panel(ax: Axes, rows: list[Row], methods: list[str]) -> None:
    """Draws two bars for each method: the graph form, and below it the dense form, hatched."""
    totals: dict[tuple[str, str], float] = {}
    for row in rows:
        key = (row["method"], row["form"])
        totals[key] = totals.get(key, 0.0) + row["median_ms"]
    longest = max(totals.values())
    for at, method in enumerate(methods):
        for form in FORMS:
            if (method, form) not in totals:
                continue
            own = [row for row in rows if (row["method"], row["form"]) == (method, form)]
            place, start = at + (-0.2 if form == "graph" else 0.2), 0.0
            for row in sorted(own, key=lambda row: list(STAGES).index(row["stage"])):
                ax.barh(place, row["median_ms"], left=start, height=0.36, color=STAGES[row["stage"]], linewidth=0)
                start += row["median_ms"]
            spread = sum(row["iqr_ms"] ** 2 for row in own) ** 0.5
            _whisker(ax, start, spread, place)
            text = f"{form}  {_milliseconds(start)}"
            other = totals.get((method, "dense"))
            if form == "graph" and other is not None and start > 0:
                text += f"  ({other / start:.1f}x faster)" if other >= start else f"  ({start / other:.1f}x slower)"
            _label(ax, start + spread / 2, place, longest, text)
    ax.set_yticks(range(len(methods)), methods)
    ax.set(ylim=(len(methods) - 0.4, -0.6), xlim=(0, longest * 1.6))
    plain_axes(ax, "median time, ms")


def _whisker(ax: Axes, at: float, spread: float, place: float) -> None:
    ax.plot([max(at - spread / 2, 0), at + spread / 2], [place, place], color=INK, linewidth=1.1, solid_capstyle="butt")


def _label(ax: Axes, end: float, place: float, longest: float, text: str) -> None:
    ax.text(end + 0.012 * longest, place, text, va="center", fontsize=8.5, color=INK, bbox=LABEL)


def _end_to_end_text(row: Row, ideal: float | None) -> str:
    text = _milliseconds(row["median_ms"])
    if row["kind"] != "plain":
        text += f"  {row['ratio_to_plain']:.2f} of plain"
    if row["kind"] == "attached" and ideal:
        text += f", {row['median_ms'] / ideal:.2f} of ideal"
    return text


def _milliseconds(value: float) -> str:
    return f"{value:.2f} ms" if value < 10 else f"{value:.1f} ms" if value < 100 else f"{value:.0f} ms"


def _check(rows: Sequence[Row], keys: tuple[str, ...], **allowed: tuple[str, ...]) -> None:
    if not rows:
        raise ValueError("Expected at least one row to plot (got none).")
    for row in rows:
        missing = [key for key in keys if key not in row]
        if missing:
            raise ValueError(f"Expected rows with {', '.join(keys)} (got one without {', '.join(missing)}).")
        for key, values in allowed.items():
            if row[key] not in values:
                raise ValueError(f"Expected {key} to be one of {', '.join(values)} (got {row[key]!r}).")
