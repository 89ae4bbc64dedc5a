"""Finds how many clusters each image has, for maps without ``counts``."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tokengraph.flat.tables import equal_ptr
from tokengraph.maps.hard import Assignment
from tokengraph.maps.soft import SoftAssignment


def with_counts(
    assignment: Assignment | SoftAssignment, images: int, valid: Tensor | None = None
) -> Assignment | SoftAssignment:
    """Adds ``counts`` to a map whose images have different numbers of clusters; returns others as they are.

    Args:
        assignment: A map over a batch; clusters of an image lie together, in the order of the images.
        images: B.
        valid: ``[B, N]`` bool, True where the batch has a token; ``None``: everywhere.

    Raises:
        TypeError: If it is no map.
        ValueError: If ``cluster_ptr`` does not fit, or without it the clusters of an image do not lie together.

    Cost: nothing for maps of :meth:`Assignment.from_dense`; one host synchronisation on CUDA for a ``cluster_ptr``
    that the caller made. Under ``torch.compile`` it cannot be read: maps of unequal images need ``counts`` there.
    """
    if not isinstance(assignment, Assignment | SoftAssignment):
        raise TypeError(
            f"Expected a strategy to return an Assignment or a SoftAssignment (got {type(assignment).__name__}). Make "
            "one with Assignment.from_dense."
        )
    if assignment.counts is not None or images == 0 or torch.compiler.is_compiling():
        return assignment
    ptr, (each, rest) = assignment.cluster_ptr, divmod(assignment.num_clusters, images)
    if ptr is None:
        if valid is None and not rest:
            return assignment
        counts = _owned(assignment, images, valid)
    elif not rest and ptr is equal_ptr(images, each, ptr.device):
        return assignment
    else:
        ends = ptr.tolist()
        if len(ends) != images + 1 or ends[0] != 0 or ends[-1] != assignment.num_clusters or ends != sorted(ends):
            raise ValueError(
                f"Expected cluster_ptr to rise from 0 to K={assignment.num_clusters} over B={images} images (got "
                f"{ends}). It says where the clusters of each image begin."
            )
        counts = [b - a for a, b in zip(ends[:-1], ends[1:], strict=True)]
    return assignment if len(set(counts)) == 1 else replace(assignment, counts=tuple(counts))


def with_ptr(assignment: Assignment | SoftAssignment, images: int) -> Assignment | SoftAssignment:
    """Adds ``cluster_ptr`` to a map without; arguments and errors as for :func:`with_counts`."""
    assignment = with_counts(assignment, images)
    if assignment.cluster_ptr is not None or not images:
        return assignment
    each = assignment.counts or (assignment.num_clusters // images,) * images
    return replace(assignment, cluster_ptr=torch.tensor([0, *each], device=assignment.cluster.device).cumsum(0))


def _owned(assignment: Assignment | SoftAssignment, images: int, valid: Tensor | None) -> list[int]:
    """Number of clusters of each image, counted from its tokens."""
    device, clusters = assignment.cluster.device, assignment.num_clusters
    if valid is None:
        each = torch.full((images,), assignment.num_tokens // images, device=device)
    else:
        each = valid.sum(dim=1)
    image = torch.repeat_interleave(torch.arange(images, device=device), each)
    if isinstance(assignment, SoftAssignment):
        image = image[assignment.token]
    owner = image.new_full((clusters + 1,), -1).scatter(0, assignment.cluster, image)[:clusters]
    if (owner < 0).any() or (owner.diff() < 0).any():
        raise ValueError(
            "Expected a map that says how many clusters each image has (got neither counts nor cluster_ptr). "
            "Build it with Assignment.from_dense, or give it cluster_ptr."
        )
    return torch.bincount(owner, minlength=images).tolist()
