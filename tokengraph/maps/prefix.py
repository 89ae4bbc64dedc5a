"""Extends maps over patch tokens to whole sequences: each prefix token stays in front, as its own cluster."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokengraph.maps.gated import Gated
from tokengraph.maps.hard import Assignment
from tokengraph.maps.soft import SoftAssignment


def with_prefix(assignment: Assignment | SoftAssignment, images: int, num_prefix: int) -> Assignment | SoftAssignment:
    """Adds ``num_prefix`` tokens, each its own cluster, in front of every image; images have equal lengths.

    Args:
        assignment: A map over ``B*N`` patch tokens to ``B*K`` clusters.
        images: B.
        num_prefix: P.

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
        _hard(assignment, images, num_prefix)
        if isinstance(assignment, Assignment)
        else _soft(assignment, images, num_prefix)
    )


def _hard(assignment: Assignment, images: int, num_prefix: int) -> Assignment:
    tokens, clusters = assignment.num_tokens // images, assignment.num_clusters // images
    image, ahead = _places(assignment, images, num_prefix)
    total = images * (num_prefix + clusters)
    rows = assignment.cluster.view(images, tokens) + (image + 1) * num_prefix
    if assignment.drops:
        rows = torch.where(assignment.cluster.view(images, tokens) == assignment.num_clusters, total, rows)
    first = image * (num_prefix + clusters) + ahead
    cluster = torch.cat([first, rows], dim=1).flatten()
    moreover = _moreover(assignment, images, num_prefix)
    moreover["weight"] = _ahead(assignment.weight, images, num_prefix)
    if assignment.centers is None:
        return Assignment(cluster, total, assignment.drops, **moreover)
    own = assignment.centers.view(images, clusters) + (image + 1) * num_prefix
    centers = torch.cat([image * (num_prefix + tokens) + ahead, own], dim=1).flatten()
    return Assignment(cluster, total, assignment.drops, centers=centers, single=assignment.single, **moreover)


def _soft(assignment: SoftAssignment, images: int, num_prefix: int) -> SoftAssignment:
    tokens, clusters = assignment.num_tokens // images, assignment.num_clusters // images
    image, ahead = _places(assignment, images, num_prefix)
    token = (image * (num_prefix + tokens) + ahead).flatten()
    cluster = (image * (num_prefix + clusters) + ahead).flatten()

    def moved(ids: Tensor, each: int) -> Tensor:
        """Returns ids of tokens or clusters, ``each`` an image, behind the prefix tokens."""
        return ids + (ids // each + 1) * num_prefix

    def ahead_of(edges: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Returns weighted edges with those of the prefix tokens in front."""
        own, theirs, weight = edges
        return (
            torch.cat([token, moved(own, tokens)]),
            torch.cat([cluster, moved(theirs, clusters)]),
            torch.cat([weight.new_ones(token.numel()), weight]),
        )

    up = assignment.up
    return SoftAssignment(
        *ahead_of((assignment.token, assignment.cluster, assignment.weight)),
        images * (num_prefix + tokens),
        images * (num_prefix + clusters),
        assignment.normalize,
        None if up is None else (lambda: ahead_of(up())) if callable(up) else ahead_of(up),
        **_moreover(assignment, images, num_prefix),
    )


def _places(assignment: Assignment | SoftAssignment, images: int, num_prefix: int) -> tuple[Tensor, Tensor]:
    """Returns the numbers of the images, ``[B, 1]``, and of the prefix tokens, ``[P]``."""
    device = assignment.cluster.device
    return torch.arange(images, device=device)[:, None], torch.arange(num_prefix, device=device)


def _moreover(assignment: Assignment | SoftAssignment, images: int, num_prefix: int) -> dict[str, Any]:
    return {"mass": _ahead(assignment.mass, images, num_prefix), "steps": _steps(assignment, images, num_prefix)}


def _ahead(values: Tensor | None, images: int, num_prefix: int) -> Tensor | None:
    """Puts ones for prefix tokens in front of each image's values: ``[B*N]`` to ``[B*(P+N)]``."""
    if values is None:
        return None
    rows = values.view(images, -1)
    return torch.cat([rows.new_ones(images, num_prefix), rows], dim=1).flatten()


def _steps(assignment: Assignment | SoftAssignment, images: int, num_prefix: int) -> tuple[Any, ...]:
    return tuple(with_prefix(step, images, num_prefix) for step in assignment.steps)
