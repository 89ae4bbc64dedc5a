"""Heavy-edge matching: the coarsening of METIS and Graclus."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokengraph.select.coarsening.edge_select import EdgeSelect

BACKENDS = ("torch", "torch-cluster")


@dataclass(frozen=True)
class HeavyEdges(EdgeSelect):
    r"""Contracts matchings of heavy edges, level by level, until ``keep`` clusters are left.

    A level matches each node at most once: edges are taken by falling weight, unless one of their ends is matched. The
    last level takes its heaviest edges only. With ``weight="cosine"`` the weights of a level are cosines of the
    clusters' mean features; otherwise edges between two clusters add up. An image whose edges run out gets edges of
    weight 0 between near clusters.

    Args:
        weight: As for every strategy on edges: ``"cosine"``, ``"given"``, ``"distance"`` or ``"one"``.
        neighbors: As for every strategy on edges.
        normalize: Takes :math:`w_{ij} (1/d_i + 1/d_j)` for the weight, as Graclus does, so that nodes with heavy edges
            all around wait.
        backend: ``"torch"`` gives the same clusters on every machine. ``"torch-cluster"`` matches by
            ``graclus_cluster``, which visits nodes in random order, here from a fixed seed for each image; its
            matchings weigh the same within a few per cent.

    Raises:
        ValueError: For another backend or weight, or edges between images.
        ImportError: If torch-cluster is asked for and not usable.

    Cost: a sort and one pass over the edges on the host for each of at least ``log2(N / keep)`` levels, after
    ``O(N^2 C)`` for the kNN graph where there are no edges.

    Ties: the pair of lower indices.

    Source: Karypis & Kumar, *A Fast and High Quality Multilevel Scheme for Partitioning Irregular Graphs*, SIAM J. Sci.
    Comput. 1998; Dhillon, Guan & Kulis, TPAMI 2007 (Graclus). Differs: nodes are not visited at random.
    """

    name: ClassVar[str] = "heavy-edges"
    normalize: bool = False
    backend: str = "torch"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backend not in BACKENDS:
            raise ValueError(f"Expected backend to be one of {', '.join(BACKENDS)} (got {self.backend!r}).")

    @property
    def method(self) -> str:
        """See :class:`~tokengraph.select.coarsening.edge_select.EdgeSelect`."""
        score = "normalized" if self.normalize else "cosine" if self.weight == "cosine" else "weight"
        return score if self.backend == "torch" else f"{score}/graclus"
