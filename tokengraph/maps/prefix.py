"""Extends maps over patch tokens to whole sequences: each prefix token stays in front, as its own cluster."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokengraph.flat.segment import as_type
from tokengraph.flat.tables import equal_ptr, ones, table
from tokengraph.maps.gated import Gated
from tokengraph.maps.hard import Assignment
from tokengraph.maps.soft import SoftAssignment


def with_prefix(
    assignment: Assignment | SoftAssignment, images: int, num_prefix: int, *, centers: bool = True
) -> Assignment | SoftAssignment:
    """Adds ``num_prefix`` tokens, each its own cluster, in front of every image; images have equal lengths.

    Args:
        assignment: A map over ``B*N`` patch tokens to ``B*K`` clusters.
        images: B.
        num_prefix: P.
        centers: Whether the new hard map needs centers, where the old one has them.

    Returns:
        A map over ``B*(P+N)`` tokens to ``B*(P+K)`` clusters, so that a sequence ``[B, P+N, C]`` is reduced as it lies
        in memory, without splitting it.
    """
    if num_prefix == 0:
        return assignment
    if isinstance(assignment, Gated):
        ahead = with_prefix(assignment.plain, images, num_prefix)
        assert isinstance(ahead, Assignment)
        return assignment.behind(images, ahead)
    return (
        _hard(assignment, images, num_prefix, centers)
        if isinstance(assignment, Assignment)
        else _soft(assignment, images, num_prefix)
    )


def _hard(assignment: Assignment, images: int, num_prefix: int, keep: bool) -> Assignment:
    tokens, clusters = assignment.num_tokens // images, assignment.num_clusters // images
    device, total = assignment.cluster.device, images * (num_prefix + clusters)
    shift = _shift(images, num_prefix, device)
    rows = assignment.cluster.view(images, tokens) + shift
    if assignment.drops:
        rows = rows.masked_fill(assignment.cluster.view(images, tokens) == assignment.num_clusters, total)
    cluster = torch.cat([prefix_ids(images, num_prefix + clusters, num_prefix, device), rows], dim=1).flatten()
    moreover = _moreover(assignment, images, num_prefix)
    moreover["weight"] = _ahead(assignment.weight, images, num_prefix)
    if assignment.centers is None or not keep:
        return Assignment(cluster, total, assignment.drops, **moreover)
    centers = centers_behind(assignment.centers, images, num_prefix, tokens)
    return Assignment(cluster, total, assignment.drops, centers=centers, single=assignment.single, **moreover)


def _soft(assignment: SoftAssignment, images: int, num_prefix: int) -> SoftAssignment:
    tokens, clusters = assignment.num_tokens // images, assignment.num_clusters // images
    device = assignment.cluster.device
    token, cluster = (prefix_ids(images, num_prefix + n, num_prefix, device).flatten() for n in (tokens, clusters))

    def ahead_of(edges: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Returns weighted edges with those of the prefix tokens in front."""
        own, theirs, weight = edges
        return (
            torch.cat([token, behind_prefix(own, images, tokens, num_prefix)]),
            torch.cat([cluster, behind_prefix(theirs, images, clusters, num_prefix)]),
            F.pad(weight, (token.numel(), 0), value=1.0),
        )

    up = assignment.up
    return SoftAssignment(
        *ahead_of((assignment.token, assignment.cluster, assignment.weight)),
        images * (num_prefix + tokens),
        images * (num_prefix + clusters),
        assignment.normalize,
        None if up is None else lambda: ahead_of(up() if callable(up) else up),
        **_moreover(assignment, images, num_prefix),
    )


def centers_behind(centers: Tensor, images: int, num_prefix: int, tokens: int) -> Tensor:
    """Puts the prefix tokens in front of each image's ``centers [B*K]``, flat ids of ``tokens`` an image."""
    own = centers.view(images, -1) + _shift(images, num_prefix, centers.device)
    return torch.cat([prefix_ids(images, num_prefix + tokens, num_prefix, centers.device), own], dim=1).flatten()


def behind_prefix(ids: Tensor, images: int, each: int, num_prefix: int) -> Tensor:
    """Returns flat ids of tokens or clusters, ``each`` an image, behind the prefix tokens of the images."""
    if torch.compiler.is_compiling() or type(ids) is not Tensor:
        return ids + (ids // each + 1) * num_prefix
    return _behind(images, each, num_prefix, str(ids.device)).index_select(0, ids)


@table(512)
def _behind(images: int, each: int, num_prefix: int, device: str) -> Tensor:
    ids = torch.arange(images * each, device=device)
    return ids + (ids // each + 1) * num_prefix


def prefix_ids(images: int, each: int, num_prefix: int, device: torch.device) -> Tensor:
    """Returns the flat ids ``[B, P]`` of the first P of each image's ``each`` rows; callers must not write into it."""
    if torch.compiler.is_compiling():
        return torch.arange(images, device=device)[:, None] * each + torch.arange(num_prefix, device=device)
    return _prefix_ids(images, each, num_prefix, str(device))


@table(512)
def _prefix_ids(images: int, each: int, num_prefix: int, device: str) -> Tensor:
    return torch.arange(images, device=device)[:, None] * each + torch.arange(num_prefix, device=device)


def _shift(images: int, num_prefix: int, device: torch.device) -> Tensor:
    """Returns how far ids of each image move when it and those before it get P prefix tokens, ``[B, 1]``."""
    return equal_ptr(images, num_prefix, device)[1:, None]


def _moreover(assignment: Assignment | SoftAssignment, images: int, num_prefix: int) -> dict[str, Any]:
    device, mass = assignment.cluster.device, _ahead(assignment.mass, images, num_prefix)
    each = (num_prefix + n // images for n in (assignment.num_tokens, assignment.num_clusters))
    ptr, cluster_ptr = (equal_ptr(images, n, device) for n in each)
    return {"mass": mass, "steps": _steps(assignment, images, num_prefix), "ptr": ptr, "cluster_ptr": cluster_ptr}


def _ahead(values: Tensor | None, images: int, num_prefix: int) -> Tensor | None:
    """Puts ones for prefix tokens in front of each image's values: ``[B*N]`` to ``[B*(P+N)]``."""
    if values is None:
        return None
    rows = values.view(images, -1)
    ahead = as_type(ones(images * num_prefix, rows.device), rows.dtype).view(images, num_prefix)
    return torch.cat([ahead, rows], dim=1).flatten()


def _steps(assignment: Assignment | SoftAssignment, images: int, num_prefix: int) -> tuple[Any, ...]:
    return tuple(with_prefix(step, images, num_prefix) for step in assignment.steps)
