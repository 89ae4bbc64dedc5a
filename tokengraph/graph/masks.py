"""Clusters of patches against a segmentation of the image's pixels."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tokengraph.graph.token_graph import TokenGraph


class Segments(NamedTuple):
    """Achievable accuracy, boundary recall and under-segmentation error of one image; NaN where there are none."""

    accuracy: float
    recall: float
    leakage: float


def check_mask_of(graph: TokenGraph, mask: Tensor) -> Tensor:
    """Returns the mask as ``[B, H, W]``.

    Raises:
        ValueError: If it does not have one image for each of the graph's, or the graph has no full grid ``(H, W)``.
        TypeError: If it is not a tensor of integers.
    """
    if not isinstance(mask, Tensor) or mask.is_floating_point() or mask.is_complex():
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"Expected mask as a Tensor of integers (got {got}).")
    mask = mask[None] if mask.dim() == 2 else mask
    if mask.dim() != 3 or mask.size(0) != graph.num_images:
        raise ValueError(f"Expected mask of shape [B={graph.num_images}, H, W] (got {list(mask.shape)}).")
    grids = graph.grids or []
    if not grids or any(len(g) != 2 or math.prod(g) != n for g, n in zip(grids, graph.counts, strict=True)):
        raise ValueError(
            f"Expected a graph of full grids (H, W) to compare with a mask (got {graph.grids} for {graph.counts} "
            "tokens). Measure the composed map on the finest graph."
        )
    return mask.to(device=graph.x.device, dtype=torch.long)


def against_mask(label: Tensor, mask: Tensor, tolerance: int | None, ignore: int) -> Segments:
    """Compares one image's clusters with its segments; :func:`tokengraph.quality` has the equations.

    Args:
        label: Cluster of each patch, ``[h, w]``; -1: none.
        mask: Segment of each pixel, ``[H, W]``.
        tolerance: Pixels that a border may be off; ``None``: 0.0025 of the diagonal.
        ignore: Pixels of this value, and negative ones, are left out.

    Raises:
        ValueError: If the tolerance is negative.
    """
    height, width = mask.shape
    if tolerance is None:
        tolerance = round(0.0025 * math.hypot(height, width))
    if tolerance < 0:
        raise ValueError(f"Expected tolerance >= 0 pixels (got {tolerance}).")
    rows, columns = (
        ((torch.arange(n, device=mask.device) + 0.5) * p / n).long()
        for n, p in zip(mask.shape, label.shape, strict=True)
    )
    pixels = label[rows[:, None], columns]
    known = (mask >= 0) & (mask != ignore)
    total = int(known.sum())
    if not total:
        return Segments(math.nan, math.nan, math.nan)
    segment = torch.unique(mask[known], return_inverse=True)[1]
    cluster = pixels[known]
    clusters, segments = int(cluster.max()) + 2, int(segment.max()) + 1  # dropped pixels are the first row
    both = torch.bincount((cluster + 1) * segments + segment, minlength=clusters * segments).view(clusters, segments)
    both = both.double()
    met = both[1:]
    leak = torch.minimum(met, met.sum(dim=1, keepdim=True) - met).sum() + both[0].sum()
    borders = _borders(torch.where(known, mask, -1), known)
    found = _borders(pixels, torch.ones_like(known)).double()
    near = F.max_pool2d(found[None, None], 2 * tolerance + 1, 1, tolerance)[0, 0] > 0
    there = int(borders.sum())
    recall = int((borders & near).sum()) / there if there else math.nan
    return Segments(float(met.amax(dim=1).sum() / total), recall, float(leak / total))


def _patch_of(pixels: int, patches: int, like: Tensor) -> Tensor:
    """Returns the patch in which the centre of each pixel of a side lies, ``[pixels]``."""
    return ((2 * torch.arange(pixels, device=like.device) + 1) * patches) // (2 * pixels)


def _borders(labels: Tensor, known: Tensor) -> Tensor:
    """Returns the pixels whose right or lower neighbour has another label, and that neighbour; both known."""
    out = torch.zeros_like(known)
    for axis in (0, 1):
        n = labels.size(axis) - 1
        first, second = labels.narrow(axis, 0, n), labels.narrow(axis, 1, n)
        apart = (first != second) & known.narrow(axis, 0, n) & known.narrow(axis, 1, n)
        out.narrow(axis, 0, n).logical_or_(apart)
        out.narrow(axis, 1, n).logical_or_(apart)
    return out
