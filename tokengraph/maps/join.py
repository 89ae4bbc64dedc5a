"""Joins the maps of single images into one map over their batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokengraph.maps.hard import Assignment
from tokengraph.maps.soft import Edges, SoftAssignment


def join(
    parts: Sequence[Assignment | SoftAssignment],
    rows: Sequence[Tensor] | None,
    sizes: Sequence[Tensor] | None = None,
) -> Assignment | SoftAssignment:
    """Joins maps of one image each into the map of the batch.

    Args:
        parts: B maps, image by image; at least one.
        rows: The features of each image, ``[n_b, C]``. If some maps have ``centroids``, those of the others are
            computed from these. ``None`` leaves out centroids.
        sizes: The sizes of each image's tokens, ``[n_b]``; they fill in for a missing weight or mass if other maps
            have one. ``None`` means ones.

    Returns:
        The map over ``sum n_b`` tokens: an :class:`Assignment` if all parts are, otherwise a :class:`SoftAssignment`,
        in which hard maps become edges of weight one.

    Raises:
        ValueError: If some maps have weighted edges and others are hard with weights of their own.

    Cost: one copy of each map.
    """
    tokens = _ends([p.num_tokens for p in parts])
    clusters = _ends([p.num_clusters for p in parts])
    each = tuple(p.num_clusters for p in parts)
    device = parts[0].cluster.device
    centers = None
    if all(p.centers is not None for p in parts):
        centers = torch.cat([p.centers + t for p, t in zip(parts, tokens, strict=False)])  # type: ignore[operator]
    shared: dict[str, Any] = {
        "ptr": torch.tensor(tokens, device=device),
        "cluster_ptr": torch.tensor(clusters, device=device),
        "centers": centers,
        "counts": each if len(set(each)) > 1 else None,
        "mass": _own([p.mass for p in parts], parts, sizes),
        "steps": _joined_steps(parts, sizes),
    }
    hard = [p for p in parts if isinstance(p, Assignment)]
    if len(hard) < len(parts):
        return _join_soft(parts, rows, tokens, clusters, shared)
    cluster = [
        torch.where(p.cluster == p.num_clusters, clusters[-1], p.cluster + c) if p.drops else p.cluster + c
        for p, c in zip(hard, clusters, strict=False)
    ]
    return Assignment(
        torch.cat(cluster),
        clusters[-1],
        any(p.drops for p in hard),
        single=all(p.single for p in hard),
        weight=_own([p.weight for p in hard], parts, sizes),
        **shared,
    )


def _join_soft(
    parts: Sequence[Assignment | SoftAssignment],
    rows: Sequence[Tensor] | None,
    tokens: list[int],
    clusters: list[int],
    shared: dict[str, Any],
) -> SoftAssignment:
    """Joins maps of which some have weighted edges; ``shared`` holds the fields that both kinds of maps have."""
    _check_mixture(parts)
    soft = [SoftAssignment.from_hard(p) if isinstance(p, Assignment) else p for p in parts]
    centroids = None
    if rows is not None and any(p.centroids is not None for p in soft):
        centroids = torch.cat(
            [p.reduce(x)[0] if p.centroids is None else p.centroids for p, x in zip(soft, rows, strict=True)]
        )
    return SoftAssignment(
        *_shifted([(p.token, p.cluster, p.weight) for p in soft], tokens, clusters),
        tokens[-1],
        clusters[-1],
        all(p.normalize for p in soft),  # for an identity map both settings give the same
        _JoinedLift(tuple(soft), tuple(tokens), tuple(clusters)),
        centroids=centroids,
        lossless=all(p.lossless for p in soft),
        **shared,
    )


def _own(
    values: Sequence[Tensor | None], parts: Sequence[Assignment | SoftAssignment], sizes: Sequence[Tensor] | None
) -> Tensor | None:
    """Joins weights or masses, with sizes for maps without; ``None`` if no map has any or steps have them."""
    if all(v is None for v in values) or any(p.steps for p in parts):
        return None
    sizes = _ones(parts) if sizes is None else sizes
    return torch.cat([s if v is None else v for v, s in zip(values, sizes, strict=True)])


def _ones(parts: Sequence[Assignment | SoftAssignment]) -> list[Tensor]:
    return [torch.ones(p.num_tokens, dtype=torch.float32, device=p.cluster.device) for p in parts]


def _joined_steps(parts: Sequence[Assignment | SoftAssignment], sizes: Sequence[Tensor] | None) -> tuple[Any, ...]:
    """Joins the steps of the maps one by one; maps with fewer steps continue as the identity."""
    if not any(p.steps for p in parts):
        return ()
    steps, sizes = [], _ones(parts) if sizes is None else list(sizes)
    for k in range(max(len(p.in_turn) for p in parts)):
        now = [p.in_turn[k] if k < len(p.in_turn) else _same(p) for p in parts]
        steps.append(join(now, None, sizes))
        sizes = [step.reduce(s[:, None], s)[1] for step, s in zip(now, sizes, strict=True)]
    return tuple(steps)


def _same(part: Assignment | SoftAssignment) -> Assignment:
    return Assignment.identity(part.num_clusters, device=part.cluster.device)


def _check_mixture(parts: Sequence[Assignment | SoftAssignment]) -> None:
    """Raises if hard maps with weights meet weighted edges, which cannot represent those weights."""
    if any(isinstance(p, Assignment) and p.weight is not None for p in parts):
        raise ValueError(
            "Expected hard clusters with weights in all images, or in none (got weighted edges in some). Give edges in "
            "all: SoftAssignment."
        )


@dataclass(frozen=True, eq=False)
class _JoinedLift:
    """Computes the joined lift edges when a lift needs them. A class, not a closure, so that maps can be pickled."""

    parts: tuple[SoftAssignment, ...]
    tokens: tuple[int, ...]
    clusters: tuple[int, ...]

    def __call__(self) -> Edges:
        return _shifted([p.way_back() for p in self.parts], self.tokens, self.clusters)


def _ends(counts: list[int]) -> list[int]:
    """``[0, c_0, c_0 + c_1, ...]``."""
    ends = [0]
    for count in counts:
        ends.append(ends[-1] + count)
    return ends


def _shifted(edges: Sequence[Edges], tokens: Sequence[int], clusters: Sequence[int]) -> Edges:
    """Joins the edges of single images, with flat ids of the batch."""
    triples = list(zip(edges, tokens, clusters, strict=False))
    token = torch.cat([e[0] + t for e, t, _ in triples])
    cluster = torch.cat([e[1] + c for e, _, c in triples])
    return token, cluster, torch.cat([e[2] for e, *_ in triples])
