"""Draws feature maps as colours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokengraph.edges.grid import Grid
from tokengraph.kinds import explains
from tokengraph.viz.figure import new_figure, show
from tokengraph.viz.image import one_of, to_array, to_rgb

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@explains
def feature_colors(features: Any, grid: Grid, *, like: Any = None, index: int = 0) -> np.ndarray:
    r"""Shows the first three principal components of features as red, green and blue.

    With :math:`V` the first three principal directions of ``like`` and :math:`\mu` its mean, the colours are
    :math:`(X - \mu) V`, scaled so that the middle 96 % of ``like`` spans [0, 1].

    Args:
        features: ``[N, C]``, or ``[B, N, C]`` in row-major order.
        grid: ``(H, W)`` with ``H*W = N``; ``(T, H, W)`` for a video.
        like: Features ``[..., C]``, or a list of such arrays, whose PCA sets directions and scale, so that several
            pictures are comparable; ``index`` does not apply to them. By default the features of the image itself.
        index: Which image of the batch ``features``.

    Returns:
        ``[H, W, 3]`` float32 in [0, 1], one colour per patch; ``[T, H, W, 3]`` for a video. The sign of each direction
        is fixed: its largest entry is positive.

    Raises:
        ValueError: If shapes do not fit the grid or each other, or ``like`` holds NaN or infinity.

    Cost: one eigendecomposition of ``[C, C]``.
    """
    x = _rows(features, grid, index)
    return _paint(x, _Palette.of(x if like is None else _all_rows(like)), grid)


@explains
def plot_features(
    image: Any,
    maps: Mapping[str, Any],
    grid: Grid,
    *,
    like: Any = None,
    index: int = 0,
    notes: Mapping[str, str] | None = None,
    title: str = "",
    subtitle: str = "",
) -> Figure:
    """Draws the photograph and several feature maps side by side, in comparable colours.

    Args:
        image: ``[3, H, W]`` or ``[H, W, 3]``, float in [0, 1] or uint8.
        maps: Maps the name to write above a picture to its features ``[N, C]`` or ``[B, N, C]``.
        grid: ``(H, W)`` of the patches.
        like: Features that set the colours, as in :func:`feature_colors`; by default the first map's.
        index: Which image of the batch.
        notes: Maps a name to a short note beside it.
        title: Above the figure.
        subtitle: Below the title, fainter.

    Returns:
        A new figure.

    Raises:
        ValueError: If there are no maps, the grid is a video's, or as for :func:`feature_colors`.

    Cost: one eigendecomposition of ``[C, C]``.
    """
    if not maps:
        raise ValueError("Expected at least one feature map (got none).")
    if len(grid) != 2:
        raise ValueError(
            f"Expected grid as (H, W) (got {tuple(grid)}). For a video, draw feature_colors frame by frame."
        )
    rgb = to_rgb(image)
    rows = {name: _rows(features, grid, index) for name, features in maps.items()}
    palette = _Palette.of(next(iter(rows.values())) if like is None else _all_rows(like))
    count = 1 + len(maps)
    tall = 3.2 * rgb.shape[0] / rgb.shape[1] + 0.35
    figure = new_figure(3.2 * count + 0.2, tall + 0.2 + 0.5 * bool(title), title, subtitle)
    axes = figure.subplots(1, count, squeeze=False).flat
    show(axes[0], rgb, "photograph")
    height, width = rgb.shape[:2]
    for ax, (name, x) in zip(axes[1:], rows.items(), strict=True):
        show(
            ax,
            _paint(x, palette, grid),
            name,
            (notes or {}).get(name, ""),
            extent=(0, width, height, 0),
            interpolation="nearest",
        )
    return figure


class _Palette(NamedTuple):
    """The mean, directions and scale that turn features into colours."""

    mean: np.ndarray  # [C]
    directions: np.ndarray  # [C, 3 or fewer]
    low: np.ndarray  # [3 or fewer]
    span: np.ndarray  # [3 or fewer]

    @classmethod
    def of(cls, x: np.ndarray) -> _Palette:
        """Fits three principal directions and their range to rows ``x [M, C]``; raises ValueError for NaN."""
        if not np.isfinite(x).all():
            raise ValueError("Expected finite features to fit colours to (got NaN or infinity).")
        mean = x.mean(axis=0)
        centred = x - mean
        directions = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :3]  # eigenvalues come in ascending order
        directions = directions * np.sign(directions[np.abs(directions).argmax(axis=0), range(directions.shape[1])])
        low, high = np.percentile(centred @ directions, [2, 98], axis=0)
        return cls(mean, directions, low, np.where(high - low > 1e-9, high - low, 1.0))


def _paint(x: np.ndarray, palette: _Palette, grid: Grid) -> np.ndarray:
    if x.shape[1] != len(palette.mean):
        raise ValueError(f"Expected features of one width (got {x.shape[1]} and {len(palette.mean)}).")
    colors = np.full((len(x), 3), 0.5)
    colors[:, : len(palette.low)] = ((x - palette.mean) @ palette.directions - palette.low) / palette.span
    return colors.clip(0, 1).reshape(*map(int, grid), 3).astype(np.float32)


def _rows(features: Any, grid: Grid, index: int) -> np.ndarray:
    array = to_array(features, "features").astype(np.float64)
    if array.ndim not in (2, 3):
        raise ValueError(f"Expected features of shape [N, C] or [B, N, C] (got {list(array.shape)}).")
    flat = array.reshape(-1, array.shape[-1])
    return one_of(flat, grid, index, "features").reshape(-1, flat.shape[1])


def _all_rows(like: Any) -> np.ndarray:
    """Returns all rows ``[M, C]`` of features ``[..., C]``, or of a list of such features."""
    several = isinstance(like, list | tuple) and len(like) > 0 and all(getattr(part, "ndim", 0) > 1 for part in like)
    arrays = [to_array(part, "like").astype(np.float64) for part in (like if several else [like])]
    if not all(array.ndim >= 2 and array.size for array in arrays):
        shapes = ", ".join(str(list(array.shape)) for array in arrays)
        raise ValueError(f"Expected like of shape [..., C] with at least one row (got {shapes}).")
    if len({array.shape[-1] for array in arrays}) > 1:
        widths = ", ".join(str(array.shape[-1]) for array in arrays)
        raise ValueError(f"Expected features of one width in like (got {widths}).")
    return np.concatenate([array.reshape(-1, array.shape[-1]) for array in arrays])
