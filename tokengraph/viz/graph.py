"""Draws a token graph over its image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tokengraph.graph.token_graph import TokenGraph
from tokengraph.kinds import explains
from tokengraph.optional import optional
from tokengraph.viz.figure import caption, new_figure
from tokengraph.viz.image import enlarge, to_array, to_rgb

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@explains
def plot_graph(
    image: Any,
    graph: TokenGraph,
    *,
    index: int = 0,
    ax: Axes | None = None,
    distance: bool = True,
    max_edges: int | None = 3000,
    dim: float = 0.65,
    title: str = "",
) -> Figure:
    """Draws a token graph over its image: nodes at their centroids, edges coloured by weight.

    Args:
        image: ``[3, H, W]`` or ``[H, W, 3]``, float in [0, 1] or uint8.
        graph: A graph with a grid, coarsened or not. The area of a node shows its ``size``, its colour is the
            photograph's.
        index: Which image of the graph.
        ax: Axes to draw in; by default a new figure.
        distance: True if edge weights are distances (small is strong), False if they are similarities (large is
            strong). Colour and opacity show the rank of the weight.
        max_edges: Draw at most this many edges, a fixed random sample; ``None``: all.
        dim: How much to darken the photograph, from 0 (not at all) to 1 (black).
        title: Above the picture, beside the numbers of nodes and edges.

    Returns:
        The figure.

    Raises:
        ValueError: If the graph has no grid, or no image ``index``.

    Cost: one patch collection of the nodes and one line collection of the edges.
    """
    if graph.grids is None or "pos" not in graph:
        raise ValueError("Expected a graph with a grid (got none). Build it with grid=(H, W).")
    if not 0 <= index < graph.num_images:
        raise ValueError(f"Expected index in [0, B={graph.num_images}) (got {index}).")
    if not 0 <= dim <= 1:
        raise ValueError(f"Expected dim in [0, 1] (got dim={dim}).")
    if len(graph.grids[index]) == 3:
        raise ValueError(
            f"Expected a graph with a grid (H, W) (got {graph.grids[index]}). For a video, draw the clusters with "
            "plot_clusters."
        )
    if ax is not None and not hasattr(ax, "imshow"):
        raise TypeError(f"Expected ax as axes of matplotlib (got {ax!r}).")
    rgb = to_rgb(image)
    one = graph.split()[index] if graph.num_images > 1 else graph
    height, width = rgb.shape[:2]
    if ax is None:
        ax = new_figure(6.0, 6.0 * height / width + 0.3).subplots()
    patch = np.array([height / graph.grids[index][0], width / graph.grids[index][1]])
    at = to_array(one.pos, "pos") * patch
    grey = rgb.mean(axis=2, keepdims=True)
    ax.imshow((1 - dim) * (0.5 * rgb + 0.5 * grey), extent=(0, width, height, 0), interpolation="hanning")
    shade = _patch_colors(rgb, to_array(one.pos, "pos"), graph.grids[index])
    edges = _draw_edges(ax, one, at, shade, distance, max_edges)
    _draw_nodes(ax, shade, at, to_array(one.size, "size"), patch)
    ax.set_axis_off()
    ax.set(xlim=(0, width), ylim=(height, 0))
    caption(ax, title, f"{len(at):,} nodes, {edges:,} edges")
    return ax.get_figure()  # type: ignore[return-value]


def _patch_colors(rgb: np.ndarray, pos: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """Returns the mean colour of the patch in which each node lies, ``[K, 3]``."""
    number = enlarge(np.arange(grid[0] * grid[1]).reshape(grid), rgb.shape[:2]).reshape(-1)
    count = np.bincount(number, minlength=grid[0] * grid[1]).clip(1)
    means = np.stack([np.bincount(number, rgb[..., c].reshape(-1), len(count)) / count for c in range(3)], axis=1)
    row, column = (np.clip(pos[:, a].astype(int), 0, grid[a] - 1) for a in (0, 1))
    return means[row * grid[1] + column]


def _draw_edges(
    ax: Axes, graph: TokenGraph, at: np.ndarray, shade: np.ndarray, distance: bool, max_edges: int | None
) -> int:
    """Draws the edges, weak ones first, and returns how many pairs of nodes they connect."""
    if graph.edge_index is None or graph.edge_index.size(1) == 0:
        return 0
    ends = np.sort(to_array(graph.edge_index, "edge_index").T, axis=1)  # both directions of an edge are one line
    weight = to_array(graph.edge_weight, "edge_weight").astype(float)
    ends, first = np.unique(ends, axis=0, return_index=True)
    ends, weight = ends[ends[:, 0] != ends[:, 1]], weight[first][ends[:, 0] != ends[:, 1]]
    count = len(ends)
    order = np.argsort(-weight if distance else weight, kind="stable")
    strength = np.empty(count)
    strength[order] = np.linspace(0, 1, count)
    if max_edges is not None and count > max_edges:
        chosen = np.random.default_rng(0).permutation(count)[:max_edges]
        order = order[np.isin(order, chosen)]
    colors = np.empty((len(order), 4))
    colors[:, :3] = 0.35 + 0.65 * shade[ends[order]].mean(axis=1)  # lighter than the photograph, to stand out from it
    colors[:, 3] = 0.10 + 0.60 * strength[order] ** 2
    lines = optional("matplotlib.collections").LineCollection(
        at[ends[order]][..., ::-1], colors=colors, linewidths=0.5 + 0.7 * strength[order], capstyle="round"
    )
    ax.add_collection(lines)
    return count


def _draw_nodes(ax: Axes, shade: np.ndarray, at: np.ndarray, size: np.ndarray, patch: np.ndarray) -> None:
    """Draws circles with the area of the patches in a node, scaled down so that neighbours do not overlap."""
    order = np.argsort(-size, kind="stable")  # small ones on top
    at, shade = at[order], shade[order]
    wide = 0.42 * np.sqrt(np.maximum(size[order], 0) * patch.prod())
    circles = optional("matplotlib.collections").EllipseCollection(
        wide,
        wide,
        np.zeros(len(at)),
        units="xy",
        offsets=at[:, ::-1],
        offset_transform=ax.transData,
        facecolors=shade,
        edgecolors="white",
        linewidths=0.5,
        zorder=3,
    )
    ax.add_collection(circles)
