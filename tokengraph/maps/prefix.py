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
    tokens, clusters = assignment.num_tokens // images, assignment.num_clusters // images
    device = assignment.cluster.device
    image = torch.arange(images, device=device)[:, None]
    ahead = torch.arange(num_prefix, device=device)
    moreover: dict[str, Any] = {
        "mass": _ahead(assignment.mass, images, num_prefix),
        "steps": _steps(assignment, images, num_prefix),
    }
    if isinstance(assignment, Assignment):
        moreover["weight"] = _ahead(assignment.weight, images, num_prefix)
        total = images * (num_prefix + clusters)
        rows = assignment.cluster.view(images, tokens) + (image + 1) * num_prefix
        if assignment.drops:
            rows = torch.where(assignment.cluster.view(images, tokens) == assignment.num_clusters, total, rows)
        first = image * (num_prefix + clusters) + ahead
        cluster = torch.cat([first, rows], dim=1).flatten()
        if assignment.centers is None:
            return Assignment(cluster, total, assignment.drops, **moreover)
        own = assignment.centers.view(images, clusters) + (image + 1) * num_prefix
        centers = torch.cat([image * (num_prefix + tokens) + ahead, own], dim=1).flatten()
        return Assignment(cluster, total, assignment.drops, centers=centers, single=assignment.single, **moreover)

    def moved(ids: Tensor, each: int) -> Tensor:
        return ids + (ids // each + 1) * num_prefix

    token = (image * (num_prefix + tokens) + ahead).flatten()
    cluster = (image * (num_prefix + clusters) + ahead).flatten()

    def ahead_of(edges: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
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
        **moreover,
    )


def _ahead(values: Tensor | None, images: int, num_prefix: int) -> Tensor | None:
    """Puts ones for prefix tokens in front of each image's values: ``[B*N]`` to ``[B*(P+N)]``."""
    if values is None:
        return None
    rows = values.view(images, -1)
    return torch.cat([rows.new_ones(images, num_prefix), rows], dim=1).flatten()


def _steps(assignment: Assignment | SoftAssignment, images: int, num_prefix: int) -> tuple[Any, ...]:
    return tuple(with_prefix(step, images, num_prefix) for step in assignment.steps)
