"""Turns cluster numbers within each image into numbers over the batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tokengraph.flat.layout import flat_ids
from tokengraph.flat.tables import equal_ptr, starts
from tokengraph.maps.check import check_clusters


class Flat(NamedTuple):
    """The fields of a flat map, in the order of :class:`tokengraph.Assignment`."""

    cluster: Tensor
    num_clusters: int
    drops: bool
    ptr: Tensor
    cluster_ptr: Tensor
    centers: Tensor | None


def flatten_clusters(
    cluster: Tensor,
    num_clusters: int | list[int],
    mask: Tensor | None,
    drops: bool,
    centers: Tensor | None,
    check: bool = True,
) -> tuple[Flat, tuple[int, ...] | None]:
    """Returns the fields of the flat map, and its ``counts`` if images differ; see ``Assignment.from_dense``."""
    if cluster.dim() != 2:
        raise ValueError(f"Expected cluster of shape [B, N] (got {list(cluster.shape)}).")
    images, tokens = cluster.shape
    device = cluster.device
    if isinstance(num_clusters, list) and len(num_clusters) != images:
        raise ValueError(f"Expected one number of clusters an image, B={images} (got {len(num_clusters)}).")
    if mask is not None and (mask.shape != cluster.shape or mask.dtype != torch.bool):
        raise ValueError(
            f"Expected mask of shape {[images, tokens]} and dtype bool (got {list(mask.shape)}, {mask.dtype})."
        )
    if isinstance(num_clusters, list):
        counts = torch.tensor([0, *num_clusters], device=device).cumsum(0)
        start, total = counts[:-1], sum(num_clusters)
    else:
        counts = equal_ptr(images, num_clusters, device)
        start, total = counts[:-1], images * num_clusters
    if check:
        check_clusters(cluster, num_clusters, mask, drops)
    flat = cluster + start[:, None]
    if drops:
        flat = flat.masked_fill(cluster < 0, total)
    ptr = equal_ptr(images, tokens, device)
    if mask is not None:
        flat = flat[mask]
        ptr = torch.cat([ptr.new_zeros(1), mask.sum(1).cumsum(0)])
    if centers is not None and not check and mask is None and not isinstance(num_clusters, list):
        centers = (centers + starts(images, tokens, device)).flatten()
    elif centers is not None:
        centers = flat_ids(centers, tokens, mask, counts.diff() if isinstance(num_clusters, list) else None)
    each = tuple(num_clusters) if isinstance(num_clusters, list) and len(set(num_clusters)) > 1 else None
    return Flat(flat.flatten(), total, drops, ptr, counts, centers), each
