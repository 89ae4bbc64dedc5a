"""The maps of single images joined into one map over their batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokengraph.maps.hard import Assignment
from tokengraph.maps.soft import Edges, SoftAssignment


def join(parts: Sequence[Assignment | SoftAssignment], rows: Sequence[Tensor]) -> Assignment | SoftAssignment:
    """Joins maps of one image each into the map of the batch.

    Args:
        parts: B maps, image by image; at least one.
        rows: The features that each map was made from, ``[n_b, C]``. If some maps have ``centroids``, those of the
            others are computed from them.

    Returns:
        The map over ``sum n_b`` tokens: an :class:`Assignment` where all are, otherwise a :class:`SoftAssignment`. Hard
        maps among weighted ones become edges of weight one.

    Cost: one copy of each map.
    """
    tokens = _ends([p.num_tokens for p in parts])
    clusters = _ends([p.num_clusters for p in parts])
    each = tuple(p.num_clusters for p in parts)
    device = rows[0].device
    centers = None
    if all(p.centers is not None for p in parts):
        centers = torch.cat([p.centers + t for p, t in zip(parts, tokens, strict=False)])  # type: ignore[operator]
    ptr, cluster_ptr = torch.tensor(tokens, device=device), torch.tensor(clusters, device=device)
    counts = each if len(set(each)) > 1 else None
    hard = [p for p in parts if isinstance(p, Assignment)]
    if len(hard) == len(parts):
        cluster = [
            torch.where(p.cluster == p.num_clusters, clusters[-1], p.cluster + c) if p.drops else p.cluster + c
            for p, c in zip(hard, clusters, strict=False)
        ]
        drops, single = any(p.drops for p in hard), all(p.single for p in hard)
        return Assignment(torch.cat(cluster), clusters[-1], drops, ptr, cluster_ptr, centers, single, counts)
    soft = [SoftAssignment.from_hard(p) if isinstance(p, Assignment) else p for p in parts]
    down = _shifted([(p.token, p.cluster, p.weight) for p in soft], tokens, clusters)
    centroids = None
    if any(p.centroids is not None for p in soft):
        centroids = torch.cat(
            [p.reduce(x)[0] if p.centroids is None else p.centroids for p, x in zip(soft, rows, strict=True)]
        )
    return SoftAssignment(
        *down,
        tokens[-1],
        clusters[-1],
        all(p.normalize for p in soft),  # a map that keeps every token is the same with and without
        _WayUp(tuple(soft), tuple(tokens), tuple(clusters)),
        ptr,
        cluster_ptr,
        centers,
        centroids,
        all(p.lossless for p in soft),
        counts,
    )


@dataclass(frozen=True, eq=False)
class _WayUp:
    """Makes the edges of the way back when a lift asks for them. A class, not a closure: maps can be pickled."""

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
    """Edges of single images with the flat ids of the batch."""
    triples = list(zip(edges, tokens, clusters, strict=False))
    token = torch.cat([e[0] + t for e, t, _ in triples])
    cluster = torch.cat([e[1] + c for e, _, c in triples])
    return token, cluster, torch.cat([e[2] for e, *_ in triples])
