"""Draws clusters over their image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tokengraph.edges.grid import Grid
from tokengraph.errors import check_positive
from tokengraph.kinds import explains
from tokengraph.maps.hard import Assignment
from tokengraph.maps.soft import SoftAssignment
from tokengraph.viz.figure import new_figure, show
from tokengraph.viz.image import enlarge, one_of, to_array, to_frames, to_rgb

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@explains
def cluster_overlay(
    image: Any,
    clusters: Any,
    grid: Grid,
    *,
    index: int = 0,
    fill: float = 1.0,
    line: int | None = None,
) -> np.ndarray:
    """Draws clusters over an image, each in its mean colour, with lines between them; dropped patches are dark grey.

    Args:
        image: ``[3, H, W]`` or ``[H, W, 3]``, float in [0, 1] or uint8; see :func:`to_rgb`. T of them for a video.
        clusters: An :class:`~tokengraph.Assignment`, a :class:`~tokengraph.SoftAssignment` (each token goes to its
            heaviest cluster), or cluster numbers of the patches; negative numbers mean dropped.
        grid: ``(H, W)`` of the patches; ``(T, H, W)`` for a video, whose clusters have one colour in all frames.
        index: Which image of the batch in ``clusters``.
        fill: Opacity of the mean colours: 1 hides the photograph, 0 shows only the lines.
        line: Width of the lines in pixels; by default it depends on the size of a patch. 0: no lines.

    Returns:
        ``[H, W, 3]`` float32 in [0, 1], of the image's own size; ``[T, H, W, 3]`` for a video.

    Raises:
        ValueError: If the image, the grid or ``fill`` does not fit.
        TypeError: If cluster numbers are no integers.

    Cost: a few passes over the pixels.

    Example:
        >>> picture = cluster_overlay(torch.rand(3, 32, 32), torch.arange(16) // 8, (4, 4))
        >>> picture.shape, len(np.unique(picture.reshape(-1, 3), axis=0))  # two colours and the line
        ((32, 32, 3), 3)
    """
    if not 0 <= fill <= 1:
        raise ValueError(f"Expected fill in [0, 1] (got fill={fill}).")
    frames = to_frames(image, grid[0]) if len(grid) == 3 else to_rgb(image)[None]
    small = labels_of(clusters, grid, index).reshape(len(frames), *map(int, grid[-2:]))
    height, width = frames.shape[1:3]
    found = np.stack([enlarge(frame, (height, width)) for frame in small])
    if line is None:
        line = max(1, round(min(height / grid[-2], width / grid[-1]) / 10))
    rgb, labels = (frames, found) if len(grid) == 3 else (frames[0], found[0])
    out = (1 - fill) * rgb + fill * _mean_colors(rgb, labels)
    dropped = labels < 0
    grey = rgb[dropped].mean(axis=1, keepdims=True)
    out[dropped] = 0.10 + 0.22 * grey
    out[np.stack([_borders(frame, line) for frame in found]).reshape(labels.shape)] = 1.0
    return out.astype(np.float32)


def labels_of(clusters: Any, grid: Grid, index: int = 0) -> np.ndarray:
    """Returns the cluster numbers of one image, ``[H, W]`` int, or video, ``[T, H, W]``; dropped patches are -1.

    Args:
        clusters: As for :func:`cluster_overlay`.
        grid: ``(H, W)`` or ``(T, H, W)`` of the patches.
        index: Which image of the batch.

    Raises:
        ValueError: If the clusters do not fit the grid.
        TypeError: If cluster numbers are no integers.
    """
    if isinstance(clusters, SoftAssignment):
        token, cluster, weight = (to_array(t, "edges") for t in (clusters.token, clusters.cluster, clusters.weight))
        flat = np.full(clusters.num_tokens, -1)
        order = np.lexsort((-cluster, weight))  # the heaviest edge comes last; ties go to the lower cluster
        flat[token[order]] = cluster[order]
    elif isinstance(clusters, Assignment):
        flat = to_array(clusters.cluster, "clusters")
        flat = np.where(flat == clusters.num_clusters, -1, flat)
    else:
        flat = to_array(clusters, "clusters").reshape(-1)
        if flat.dtype.kind not in "iu":
            raise TypeError(f"Expected cluster numbers as integers (got {flat.dtype}).")
        flat = np.maximum(flat.astype(np.int64), -1)
    return one_of(flat, grid, index, "clusters")


@explains
def plot_clusters(
    image: Any,
    methods: Mapping[str, Any],
    grid: Grid,
    *,
    index: int = 0,
    fill: float = 1.0,
    columns: int = 4,
    unit: str = "tokens",
    title: str = "",
    subtitle: str = "",
) -> Figure:
    """Draws the photograph and the clusters of several methods side by side.

    For a video, each method has a row and each frame a column.

    Args:
        image: As in :func:`cluster_overlay`.
        methods: Maps the name to write above a picture to its clusters.
        grid: ``(H, W)`` of the patches; ``(T, H, W)`` for a video.
        index: Which image of the batch.
        fill: Opacity of the mean colours.
        columns: Pictures in a row; a video's rows have its T frames.
        unit: What the number beside a name counts; ``"regions"`` for masks.
        title: Above the figure.
        subtitle: Below the title, fainter.

    Returns:
        A new figure.

    Raises:
        ValueError: If there are no methods, or as for :func:`cluster_overlay`.

    Cost: one :func:`cluster_overlay` for each picture.
    """
    if not methods:
        raise ValueError("Expected at least one method's clusters (got none).")
    if len(grid) == 3:
        return _plot_frames(to_frames(image, grid[0]), methods, grid, index, fill, unit, title, subtitle)
    rgb = to_rgb(image)
    count = 1 + len(methods)
    check_positive(columns=columns)
    columns = min(columns, count)
    rows = -(-count // columns)
    tall = 3.0 * rgb.shape[0] / rgb.shape[1] + 0.35
    figure = new_figure(3.0 * columns + 0.2, tall * rows + 0.2 + 0.5 * bool(title), title, subtitle)
    axes = figure.subplots(rows, columns, squeeze=False).flat
    show(axes[0], rgb, "photograph", f"{grid[0]} x {grid[1]} patches")
    for ax, (name, clusters) in zip(axes[1:count], methods.items(), strict=True):
        labels = labels_of(clusters, grid, index)
        show(ax, cluster_overlay(rgb, labels, grid, fill=fill), name, _note(labels, unit))
    for ax in axes[count:]:
        ax.set_axis_off()
    return figure


def _plot_frames(
    frames: np.ndarray,
    methods: Mapping[str, Any],
    grid: Grid,
    index: int,
    fill: float,
    unit: str,
    title: str,
    subtitle: str,
) -> Figure:
    """Draws the frames in a row, and below them a row for each method."""
    rows, columns = 1 + len(methods), len(frames)
    tall = 2.0 * frames.shape[1] / frames.shape[2] + 0.35
    figure = new_figure(2.0 * columns + 0.2, tall * rows + 0.2 + 0.5 * bool(title), title, subtitle)
    axes = figure.subplots(rows, columns, squeeze=False)
    pictures = {"video": (frames, " x ".join(map(str, grid)))}
    for name, clusters in methods.items():
        labels = labels_of(clusters, grid, index)
        pictures[name] = cluster_overlay(frames, labels, grid, fill=fill), _note(labels, unit)
    for row, (name, (video, note)) in zip(axes, pictures.items(), strict=True):
        for t, (ax, frame) in enumerate(zip(row, video, strict=True)):
            show(ax, frame, name if t == 0 else "", note if t == columns - 1 else "")
    return figure


def _note(labels: np.ndarray, unit: str) -> str:
    kept = len(np.unique(labels[labels >= 0]))
    return f"{kept} of {labels.size} kept" if (labels < 0).any() else f"{kept} {unit}"


def _mean_colors(rgb: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the mean colour of each pixel's cluster, in the shape of ``rgb``; over all frames of a video."""
    ids = np.unique(labels, return_inverse=True)[1].reshape(-1)
    count = np.bincount(ids)
    means = [np.bincount(ids, rgb[..., c].reshape(-1)) / count for c in range(3)]
    return np.stack(means, axis=1)[ids].reshape(rgb.shape)


def _borders(labels: np.ndarray, line: int) -> np.ndarray:
    """Returns ``[H, W]`` bool, True along borders of clusters; ``line`` pixels wide, half of them on either side."""
    out = np.zeros(labels.shape, dtype=bool)
    for axis in (0, 1):
        met = np.nonzero(np.diff(labels, axis=axis))  # the next pixel belongs to another cluster
        for shift in range(-((line - 1) // 2), line // 2 + 1) if line else ():
            at = [i if a != axis else (i + shift).clip(0, labels.shape[a] - 1) for a, i in enumerate(met)]
            out[tuple(at)] = True
    return out
