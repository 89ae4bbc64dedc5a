"""Token clustering: soft k-means in which tokens compare only with the clusters of cells around them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tokengraph.edges.cells import (
    check_cells,
    check_window,
    label_map,
    pool_edges,
    pool_matrices,
    tile_pairs,
)
from tokengraph.edges.distance import most_central, products_blur
from tokengraph.edges.grid import Grid
from tokengraph.errors import check_finite, check_grid, check_mask, check_tokens
from tokengraph.flat.looks import may_differentiate, may_look
from tokengraph.flat.segment import as_type, wide
from tokengraph.kinds import explains
from tokengraph.select.expedite.forms import FORMS, LABEL_MAPS, LEAST_MASS, Case, Dense, EdgeList, Tiles

EMPTY = ("keep", "zero")

SHARPNESS = 5.0  # between 3 and 8 little changes: cosines to the dense features on photographs, scenes, solar cells


class How(NamedTuple):
    """Options of :func:`token_clustering`."""

    iterations: int
    inv_temperature: float | str
    window: int
    empty: str
    detach: bool
    form: str
    label_map: str = "nearest"


class Clustering(NamedTuple):
    """The result of token clustering, for each image.

    ``centers + origin`` are the clusters. They are stored apart because distances between small numbers are more exact.
    """

    centers: Tensor  # [B, M, C] float32 or wider, minus origin
    origin: Tensor  # [B, 1, C] one token of each image
    weight: Tensor  # [B, E] the last soft assignment; ones without iterations
    token: Tensor  # [E] token of each edge within its image, sorted
    cluster: Tensor  # [E] cluster of each edge within its image
    inv_temperature: float | Tensor  # [B, 1, 1] if each image has its own


@explains
def token_clustering(
    x: Tensor,
    grid: Grid,
    clusters: Grid,
    *,
    iterations: int = 5,
    inv_temperature: float | str = 0.02,
    window: int = 5,
    empty: str = "keep",
    detach: bool = True,
    form: str = "auto",
    mask: Tensor | None = None,
    label_map: str = "nearest",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""Turns a token grid into a smaller grid of clusters by soft k-means with fixed candidates.

    Centres start as averages over the bins of the small grid. With :math:`A(n)` the cells in a square around the
    token's own cell, it repeats T times:

    .. math::
        q_{nm} = \operatorname{softmax}_{m \in A(n)} (-t \lVert z_n - s_m \rVert^2), \qquad
        s_m = \sum_n q_{nm} z_n \,/\, \sum_n q_{nm}

    Args:
        x: Tokens of the full grid in row-major order, ``[B, H*W, C]``. Attention windows count as images.
        grid: ``(H, W)``; ``(T, H, W)`` for a video.
        clusters: ``(h, w)``, or ``(t, h, w)``; more rows or columns than the grid has are allowed.
        iterations: T. 0 gives the averages themselves.
        inv_temperature: t; ``"auto"``: 5 over each image's median squared distance to the own cell's average, as
            measured on a ViT-S/14: a fifth of it loses much, twice as much little.
        window: Side of the square of candidates, a cube in a video, in cells, odd.
        empty: Value of a cluster that no token is near enough to: ``"keep"``: its last value; ``"zero"``: zeros.
        detach: Stops gradients through the weights; ``x`` then gets gradients through the last average only.
        form: ``"dense"``, ``"edges"`` or ``"tiles"``, which agree up to rounding; ``"auto"`` takes tiles if they
            multiply less than half of all pairs. If products are too inexact for distant tokens, eager CPU runs take
            edges, which subtract; on CUDA and compiled, choose ``"edges"`` yourself.
        mask: ``[B, H*W]`` bool, False for padding, which then has weight 0 in every average, for any content. A
            cell of padding only starts as the average of the image. ``None``: padding counts as tokens, as published.
        label_map: Definition of a patch's own cell: ``"nearest"``; or ``"trilinear"``, for videos and ``window >= 3``:
            cell numbers interpolated between cells, as released for Video-Swin. It supports no tiles.

    Returns:
        ``centers [B, h*w, C]`` in the dtype of ``x``; the last q as edges: ``token [E]``, ``cluster [E]``, ids within
        the image, sorted by token then cluster, and ``weight [B, E]`` float32 or wider.

    Raises:
        ValueError: If the grid does not match N, ``window`` is even, or an option is unknown.

    Cost: tiles: about ``5 T E C`` multiply-adds, memory linear in N; dense: ``2 T N M C`` and ``N M`` floats an image.
    No host synchronisation.

    Source: Liang et al., *Expediting Large-Scale Vision Transformer for Dense Prediction without Fine-tuning*,
    NeurIPS 2022. Differs: float32 inside; empty clusters keep their place (published: ``empty="zero"``).
    """
    check_tokens(x)
    check_clustering(iterations, inv_temperature, window, empty, form, label_map)
    check_finite(x)
    check_mask(mask, x)
    how = How(iterations, inv_temperature, window, empty, detach, form, label_map)
    made = cluster_tokens(x, grid, clusters, how, mask)
    return (made.centers + made.origin).to(x.dtype), made.token, made.cluster, made.weight


def check_clustering(
    iterations: int,
    inv_temperature: float | str,
    window: int,
    empty: str = "keep",
    form: str = "auto",
    label_map: str = "nearest",
) -> None:
    """Raises unless every option has a value that :func:`token_clustering` knows."""
    if isinstance(iterations, bool) or not isinstance(iterations, int):
        raise TypeError(f"Expected iterations as an int (got {iterations!r}).")
    if iterations < 0:
        raise ValueError(f"Expected iterations >= 0 (got iterations={iterations}).")
    check_temperature(inv_temperature)
    check_window(window)
    options = (("empty", empty, EMPTY), ("form", form, FORMS), ("label_map", label_map, tuple(LABEL_MAPS)))
    for name, value, known in options:
        if value not in known:
            raise ValueError(f"Expected {name} to be one of {', '.join(known)} (got {value!r}).")
    if label_map != "nearest" and form == "tiles":
        raise ValueError(f"Expected form 'dense' or 'edges' with label_map={label_map!r} (got 'tiles').")


def check_temperature(inv_temperature: float | str | Tensor) -> None:
    """Raises unless it is a positive number, a tensor of them, or ``"auto"``."""
    if isinstance(inv_temperature, Tensor) or inv_temperature == "auto":
        return
    if isinstance(inv_temperature, str) or not 0 < inv_temperature < float("inf"):
        raise ValueError(
            f"Expected inv_temperature > 0 or 'auto' (got {inv_temperature!r}). It multiplies squared distances."
        )


def cluster_tokens(x: Tensor, grid: Grid, clusters: Grid, how: How, mask: Tensor | None = None) -> Clustering:
    """Like :func:`token_clustering`, without checks of options; the result serves reconstruction too."""
    grid = check_grid(grid, x.size(1), video=True)
    clusters = check_cells(grid, clusters)[len(grid) :]
    with torch.autocast(x.device.type, enabled=False):
        z = as_type(x, wide(x))
        real = None if mask is None else mask[..., None].to(z.dtype)
        z = z if real is None else z * real
        # Any token can be the origin; the one nearest to the mean of a sample is a good choice.
        zero = most_central(z.detach()[:, :: max(1, z.size(1) // 64)])
        z = z - zero
        s, t = _start(z, grid, clusters, real), how.inv_temperature
        if isinstance(t, str):
            t = _temperature(z, s, grid, clusters, mask)
        if how.iterations == 0:
            token, cluster = pool_edges(grid, clusters, device=x.device)
            weight = z.new_ones(x.size(0), token.numel()) if real is None else real[:, token, 0]
            return Clustering(s, zero, weight, token, cluster, t)
        kind = _choose(how, grid, clusters, z.device)
        case = Case(z, grid, clusters, how.window, t, real, how.label_map)
        if how.form == "auto" and products_blur(z, s, t):
            kind = EdgeList
        with torch.set_grad_enabled(torch.is_grad_enabled() and not how.detach):
            form = kind(replace(case, z=z.detach()) if how.detach else case)
            s = _iterate(form, s, zero, how)
        if how.detach and may_differentiate(z):
            form = kind(case)  # gradients reach the last average only
        q, mean, mass = form(s, detach=how.detach)
        weight = form.weights(q)
        s = _settle(mean, mass, s, zero, how.empty)
        token, cluster, _ = case.candidates()
        return Clustering(s, zero, weight, token, cluster, t)


def _iterate(form: Dense | EdgeList | Tiles, s: Tensor, zero: Tensor, how: How) -> Tensor:
    """Returns the centres after all iterations but the last."""
    count = how.iterations - 1
    if may_look(s) and s.numel() and count > 1:  # one look for all: a cluster is seldom empty
        at, masses = s, []
        for _ in range(count):
            _, at, mass = form(at)
            masses.append(mass)
        if float(torch.stack(masses).detach().min()) >= LEAST_MASS:
            return at
    for _ in range(count):
        _, mean, mass = form(s)
        s = _settle(mean, mass, s, zero, how.empty)
    return s


def _choose(how: How, grid: Grid, clusters: Grid, device: torch.device) -> type[Dense] | type[EdgeList] | type[Tiles]:
    form = how.form
    if form == "auto" and how.label_map != "nearest":
        form = "dense"
    if form == "auto":
        pairs = math.prod(grid) * math.prod(clusters)
        form = "tiles" if 2 * tile_pairs(grid, clusters, how.window, device=device) < pairs else "dense"
    return {"dense": Dense, "edges": EdgeList, "tiles": Tiles}[form]


def _start(z: Tensor, grid: Grid, clusters: Grid, real: Tensor | None) -> Tensor:
    """Averages tokens over bins, ``[B, h*w, C]``; only tokens with ``real [B, N, 1]`` of 1, if it is given."""
    if real is None:
        return _pool(z, grid, clusters)
    share = _pool(real, grid, clusters)
    whole = (z * real).sum(dim=1, keepdim=True) / real.sum(dim=1, keepdim=True).clamp_min(1.0)
    part = _pool(z * real, grid, clusters) / torch.where(share > 0, share, 1.0)
    return torch.where(share > 0, part, whole)


def _pool(z: Tensor, grid: Grid, clusters: Grid) -> Tensor:
    """Averages tokens over bins, ``[B, h*w, C]``, by one product along each axis."""
    images, _, channels = z.shape
    done, rest = images, math.prod(grid) * channels  # rows before the axis, and numbers in each row after it
    for bins, places, cells in zip(
        pool_matrices(grid, clusters, dtype=z.dtype, device=z.device), grid, clusters, strict=True
    ):
        rest //= max(places, 1)
        z = torch.bmm(bins.expand(done, -1, -1), z.reshape(done, places, rest))
        done = done * cells
    return z.view(images, math.prod(clusters), channels)


def _temperature(z: Tensor, s: Tensor, grid: Grid, clusters: Grid, mask: Tensor | None) -> Tensor:
    """Returns a temperature in the units of each image, ``[B, 1, 1]``: SHARPNESS over the median squared distance."""
    own = s.detach().index_select(1, label_map(grid, clusters, device=z.device))
    squared = torch.linalg.vector_norm(own - z.detach(), dim=2).square()  # a square of all numbers would be a copy
    if mask is None:  # a sort, because ONNX has no median
        median = squared.sort(dim=1).values[:, (squared.size(1) - 1) // 2]
    else:
        middle = (mask.sum(dim=1, keepdim=True) - 1).clamp_min(0) // 2
        median = squared.masked_fill(~mask, torch.inf).sort(dim=1).values.gather(1, middle)[:, 0]
        median = median.masked_fill(~mask.any(dim=1), 0.0)
    return (SHARPNESS / F.threshold(median, torch.finfo(z.dtype).tiny, SHARPNESS))[:, None, None]  # of zero: 1


def _settle(mean: Tensor, mass: Tensor, before: Tensor, zero: Tensor, empty: str) -> Tensor:
    """Returns the next centres ``[B, M, C]``: means, or the value of ``empty`` where ``mass [B, M]`` is 0."""
    if may_look(mean) and mass.numel() and float(mass.detach().min()) >= LEAST_MASS:
        return mean  # the usual case; where a check would wait for the device, the pass below is cheaper
    none = mass < LEAST_MASS
    if empty == "keep":
        return torch.where(none[..., None], before, mean)
    # "zero" means zero before the origin moved, so mean + zero must equal sum(q (z + zero)) / max(mass, LEAST_MASS).
    return mean + zero * (mass / mass.clamp_min(LEAST_MASS) - 1.0)[..., None]
