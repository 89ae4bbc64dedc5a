"""The edges of a weighted map that is given as a matrix for each image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokengraph.errors import check_mask, check_positive, check_tokens
from tokengraph.flat.layout import flat_ids
from tokengraph.flat.tables import equal_ptr
from tokengraph.maps.product import Edges


def largest(matrix: Tensor, topk: int) -> tuple[Tensor, Tensor]:
    """The ``topk`` largest weights of each row of ``[B, N, M]``, scaled to the row's sum, and their columns.

    Ties go to the lower column. Both are ``[B, N, k]``, columns rising.
    """
    order = matrix.argsort(dim=2, descending=True, stable=True)[..., :topk].sort(dim=2).values
    weight, total = matrix.gather(2, order), matrix.sum(dim=2, keepdim=True)
    share = weight.sum(dim=2, keepdim=True)
    return weight * torch.where(share != 0, total / torch.where(share != 0, share, 1.0), 1.0), order


def matrix_fields(
    matrix: Tensor, num_clusters: int | list[int] | None, mask: Tensor | None, topk: int | None, centers: Tensor | None
) -> dict[str, Any]:
    """The fields of the map by name; see :meth:`tokengraph.SoftAssignment.from_matrix`."""
    check_tokens(matrix, name="matrix")
    check_mask(mask, matrix)
    images, tokens, width = matrix.shape
    count = width if num_clusters is None else num_clusters
    each = count if isinstance(count, list) else [count]
    if (isinstance(count, list) and len(each) != images) or any(not 0 <= k <= width for k in each):
        raise ValueError(f"Expected at most M={width} clusters for each of B={images} images (got {count}).")
    column = None
    if topk is not None:
        check_positive(topk=topk)
        matrix, column = largest(matrix, topk) if topk < width else (matrix, None)
    (token, cluster, weight), ptr, cluster_ptr = _edges(matrix, column, count, mask)
    ragged = isinstance(count, list)
    if centers is not None:
        centers = flat_ids(centers, tokens, mask, cluster_ptr.diff() if ragged else None)
    return {
        "token": token,
        "cluster": cluster,
        "weight": weight,
        "num_tokens": images * tokens if mask is None else int(ptr[-1]),
        "num_clusters": sum(count) if isinstance(count, list) else images * count,
        "ptr": ptr,
        "cluster_ptr": cluster_ptr,
        "centers": centers,
        "counts": tuple(each) if ragged and len(set(each)) > 1 else None,
    }


def _edges(
    matrix: Tensor, column: Tensor | None, num_clusters: int | list[int], mask: Tensor | None
) -> tuple[Edges, Tensor, Tensor]:
    """Flat edges of weights ``[B, N, k]``, their clusters ``column`` within each image, ``ptr`` and ``cluster_ptr``."""
    images, tokens, width = matrix.shape
    device = matrix.device
    if isinstance(num_clusters, list):
        cluster_ptr = torch.tensor([0, *num_clusters], device=device).cumsum(0)
    else:
        cluster_ptr = equal_ptr(images, num_clusters, device)
    column = torch.arange(width, device=device).expand(matrix.shape) if column is None else column
    cluster = column + cluster_ptr[:-1, None, None]
    place = torch.arange(tokens, device=device).expand(images, -1)
    if mask is None:
        ptr = equal_ptr(images, tokens, device)
        token = flat_ids(place, tokens, None, None)
        if not isinstance(num_clusters, list):
            token = token[:, None].expand(-1, width)
            return (token.flatten(), cluster.flatten(), matrix.flatten()), ptr, cluster_ptr
        mask = torch.ones_like(place, dtype=torch.bool)
    else:
        ptr = torch.cat([mask.new_zeros(1, dtype=torch.long), mask.sum(dim=1).cumsum(0)])
        token = mask.flatten().cumsum(0) - 1
    there = mask[..., None].expand(matrix.shape)
    if isinstance(num_clusters, list):
        there = there & (column < cluster_ptr.diff()[:, None, None])
    token = token.view(images, tokens, 1).expand(matrix.shape)
    return (token[there], cluster[there], matrix[there]), ptr, cluster_ptr
