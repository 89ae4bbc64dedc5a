"""Draws measures of several coarsenings side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tokengraph.errors import check_positive
from tokengraph.graph.quality import Quality
from tokengraph.kinds import explains
from tokengraph.viz.figure import BLUE, GREY, INK, TEAL, new_figure, plain_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MEASURES = {  # name on the axis, and whether more is better
    "spectral": ("spectral distance", False),
    "cut": ("cut", False),
    "modularity": ("modularity", True),
    "variance": ("variance inside", False),
    "compactness": ("compactness", True),
    "accuracy": ("achievable accuracy", True),
    "recall": ("boundary recall", True),
    "leakage": ("under-segmentation", False),
}


@explains
def plot_quality(methods: Mapping[str, Quality], *, columns: int = 4, title: str = "", subtitle: str = "") -> Figure:
    """Draws a panel of bars for each measure: the mean over images of each method, its best method in another colour.

    Args:
        methods: Maps the name to write beside a bar to the result of :func:`tokengraph.quality`. Measures that apply to
            no method have no panel.
        columns: Panels in a row.
        title: Above the figure.
        subtitle: Below the title, fainter.

    Returns:
        A new figure. With several images, whiskers show the range over images.

    Raises:
        ValueError: If there are no methods, or no measure applies.

    Example:
        >>> from tokengraph import Assignment, TokenGraph, quality
        >>> graph = TokenGraph.from_tokens(torch.randn(1, 16, 4), (4, 4)).connect_grid()
        >>> halves = quality(graph, Assignment(torch.arange(16) // 8, 2))
        >>> [ax.get_xlabel() for ax in plot_quality({"halves": halves}).axes[:2]]
        ['spectral distance (less is better)', 'cut (less is better)']
    """
    if not methods:
        raise ValueError("Expected at least one method's quality (got none).")
    means = {name: found.mean() for name, found in methods.items()}
    shown = [key for key in MEASURES if any(not math.isnan(mean[key]) for mean in means.values())]
    if not shown:
        raise ValueError("Expected a measure that applies to some method (got none).")
    check_positive(columns=columns)
    columns = min(columns, len(shown))
    rows = -(-len(shown) // columns)
    tall = 0.28 * len(methods) + 0.75
    figure = new_figure(2.6 * columns + 1.0, tall * rows + 0.2 + 0.5 * bool(title), title, subtitle)
    axes = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    for ax, key in zip(axes, shown, strict=False):
        _panel(ax, key, methods, means)
    for ax in axes[len(shown) :]:
        ax.set_axis_off()
    return figure


def _panel(ax: Axes, key: str, methods: Mapping[str, Quality], means: Mapping[str, Mapping[str, float]]) -> None:
    name, more = MEASURES[key]
    values = {method: mean[key] for method, mean in means.items() if not math.isnan(mean[key])}
    best = (max if more else min)(values.values())
    longest = max(max(values.values()), 1e-12)
    for at, (method, found) in enumerate(methods.items()):
        value = values.get(method)
        if value is None:
            ax.text(0, at, " not measured", va="center", fontsize=8, color=GREY)
            continue
        ax.barh(at, value, height=0.7, color=TEAL if value == best else BLUE)
        each = getattr(found, key)
        each = each[~each.isnan()]
        end = value
        if each.numel() > 1:
            ax.plot([float(each.min()), float(each.max())], [at, at], color=INK, linewidth=1)
            end = max(value, float(each.max()))
        ax.text(max(end, 0) + 0.02 * longest, at, f"{value:.3g}", va="center", fontsize=8, color=INK)
    ax.set_yticks(range(len(methods)), list(methods))
    low = min(0.0, *values.values()) if len(values) > 1 else min(0.0, best)
    ax.set(ylim=(len(methods) - 0.4, -0.6), xlim=(1.1 * low, 1.3 * longest))
    plain_axes(ax, f"{name} ({'more' if more else 'less'} is better)")
