"""Clusters over the image they come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tokengraph.maps.hard import Assignment
from tokengraph.maps.soft import SoftAssignment
from tokengraph.viz.figure import new_figure, show
from tokengraph.viz.image import Grid, enlarge, one_of, to_array, to_rgb

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def cluster_overlay(
    image: Any,
    clusters: Any,
    grid: Grid,
    *,
    index: int = 0,
    fill: float = 1.0,
    line: int | None = None,
) -> np.ndarray:
    """Draws clusters over an image: each in its mean colour, a line where two meet, dropped patches dark and grey.

    Args:
        image: ``[3, H, W]`` or ``[H, W, 3]``, float in [0, 1] or uint8; see :func:`to_rgb`.
        clusters: An :class:`~tokengraph.Assignment`, a :class:`~tokengraph.SoftAssignment` (each token goes to its
            heaviest cluster), or cluster numbers over the patches, negative ones dropped.
        grid: ``(H, W)`` of the patches.
        index: Which image of the batch that ``clusters`` is over.
        fill: Share of the mean colour against the photograph: 1 paints clusters flat, 0 leaves only the lines.
        line: Width of the lines in pixels; by default it follows the size of a patch. 0: no lines.

    Returns:
        ``[H, W, 3]`` float32 in [0, 1], of the image's own size.

    Raises:
        ValueError: If the image, the grid or ``fill`` does not fit.

    Cost: a few passes over the pixels.

    Example:
        >>> picture = cluster_overlay(torch.rand(3, 32, 32), torch.arange(16) // 8, (4, 4))
        >>> picture.shape, len(np.unique(picture.reshape(-1, 3), axis=0))  # two colours and the line
        ((32, 32, 3), 3)
    """
    if not 0 <= fill <= 1:
        raise ValueError(f"Expected fill in [0, 1] (got fill={fill}).")
    rgb = to_rgb(image)
    labels = enlarge(labels_of(clusters, grid, index), rgb.shape[:2])
    if line is None:
        line = max(1, round(min(rgb.shape[0] / grid[0], rgb.shape[1] / grid[1]) / 10))
    out = (1 - fill) * rgb + fill * _mean_colors(rgb, labels)
    dropped = labels < 0
    grey = rgb[dropped].mean(axis=1, keepdims=True)
    out[dropped] = 0.10 + 0.22 * grey
    out[_borders(labels, line)] = 1.0
    return out.astype(np.float32)


def labels_of(clusters: Any, grid: Grid, index: int = 0) -> np.ndarray:
    """Cluster numbers of the patches of one image, ``[H, W]`` int; dropped patches are -1."""
    if isinstance(clusters, SoftAssignment):
        token, cluster, weight = (to_array(t, "edges") for t in (clusters.token, clusters.cluster, clusters.weight))
        flat = np.full(clusters.num_tokens, -1)
        order = np.lexsort((-cluster, weight))  # the heaviest edge is written last; of equals the lower cluster
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


def plot_clusters(
    image: Any,
    methods: Mapping[str, Any],
    grid: Grid,
    *,
    index: int = 0,
    fill: float = 1.0,
    columns: int = 4,
    title: str = "",
    subtitle: str = "",
) -> Figure:
    """Puts the photograph and the clusters of several methods side by side.

    Args:
        image: As in :func:`cluster_overlay`.
        methods: Clusters by the name to write above them.
        grid: ``(H, W)`` of the patches.
        index: Which image of the batch.
        fill: Share of the mean colour against the photograph.
        columns: Pictures in a row.
        title: Above the figure.
        subtitle: Below the title, fainter.

    Returns:
        A figure of its own.
    """
    if not methods:
        raise ValueError("Expected at least one method's clusters (got none).")
    rgb = to_rgb(image)
    count = 1 + len(methods)
    columns = min(columns, count)
    rows = -(-count // columns)
    tall = 3.0 * rgb.shape[0] / rgb.shape[1] + 0.35
    figure = new_figure(3.0 * columns + 0.2, tall * rows + 0.2 + 0.5 * bool(title), title, subtitle)
    axes = figure.subplots(rows, columns, squeeze=False).flat
    show(axes[0], rgb, "photograph", f"{grid[0]} x {grid[1]} patches")
    for ax, (name, clusters) in zip(axes[1:count], methods.items(), strict=True):
        labels = labels_of(clusters, grid, index)
        kept = len(np.unique(labels[labels >= 0]))
        note = f"{kept} of {labels.size} kept" if (labels < 0).any() else f"{kept} tokens"
        show(ax, cluster_overlay(rgb, labels, grid, fill=fill), name, note)
    for ax in axes[count:]:
        ax.set_axis_off()
    return figure


def _mean_colors(rgb: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Each pixel's cluster's mean colour, ``[H, W, 3]``."""
    ids = np.unique(labels, return_inverse=True)[1].reshape(-1)
    count = np.bincount(ids)
    means = [np.bincount(ids, rgb[..., c].reshape(-1)) / count for c in range(3)]
    return np.stack(means, axis=1)[ids].reshape(rgb.shape)


def _borders(labels: np.ndarray, line: int) -> np.ndarray:
    """Where clusters meet, ``[H, W]`` bool, ``line`` pixels wide, half of them on either side."""
    out = np.zeros(labels.shape, dtype=bool)
    for axis in (0, 1):
        met = np.nonzero(np.diff(labels, axis=axis))  # pixels whose next one belongs to another cluster
        for shift in range(-((line - 1) // 2), line // 2 + 1) if line else ():
            at = [i if a != axis else (i + shift).clip(0, labels.shape[a] - 1) for a, i in enumerate(met)]
            out[tuple(at)] = True
    return out
