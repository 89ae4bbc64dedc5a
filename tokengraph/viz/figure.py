"""The common style of all figures, without pyplot and without changes to matplotlib's settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tokengraph.optional import optional

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, RULE = "#1d2433", "#6b7280", "#e3e6eb"
BLUE, TEAL, AMBER, ROSE, GREY = "#3b6fd4", "#2a9d8f", "#e9a23b", "#d1495b", "#9aa3b2"


def new_figure(width: float, height: float, title: str = "", subtitle: str = "") -> Figure:
    """Makes an empty figure of this size in inches, with the title on the left."""
    figure = optional("matplotlib.figure").Figure(
        figsize=(width, height), dpi=150, facecolor="white", layout="constrained"
    )
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.06, wspace=0.0, hspace=0.02)
    if title:
        heading = figure.suptitle(title, x=0.1 / width, ha="left", fontsize=13, fontweight="bold", color=INK)
        heading.set_linespacing(1.5)
        if subtitle:
            heading.set_text(f"{title}\n")
            figure.text(0.1 / width, 1 - 0.42 / height, subtitle, fontsize=9.5, color=FAINT, va="center")
    return figure


def show(ax: Axes, picture: np.ndarray, title: str = "", note: str = "", **options: Any) -> None:
    """Draws a picture ``[H, W, 3]`` without axes, with its name and a fainter note above it."""
    ax.imshow(picture, **{"interpolation": "hanning", **options})
    ax.set_axis_off()
    caption(ax, title, note)


def caption(ax: Axes, title: str, note: str = "") -> None:
    """Writes a name in bold at the upper left corner of the axes, and a note at the right."""
    ax.set_title(title, loc="left", fontsize=10.5, fontweight="bold", color=INK, pad=5)
    ax.set_title(note, loc="right", fontsize=9, color=FAINT, pad=5)


def plain_axes(ax: Axes, label: str) -> None:
    """Styles axes for horizontal bars: faint vertical rules, no box."""
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.spines["bottom"].set_color(RULE)
    ax.grid(axis="x", color=RULE, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(axis="both", length=0, labelsize=9, labelcolor=INK)
    ax.tick_params(axis="x", labelcolor=FAINT)
    ax.set_xlabel(label, fontsize=9, color=FAINT)
