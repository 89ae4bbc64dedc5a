"""Local variation: contracts nodes between which the graph's smooth signals change least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokengraph.errors import check_positive
from tokengraph.select.coarsening.edge_select import EdgeSelect


@dataclass(frozen=True)
class LocalVariation(EdgeSelect):
    r"""Contracts sets of nodes of small local variation cost, level by level, so that low eigenvectors survive.

    .. math:: \operatorname{cost}(C) = \frac{\lVert \Pi_C^\perp A_{\ell - 1} \rVert_{L_C}^2}{|C| - 1}, \qquad
              A_0 = V_R \Lambda_R^{+1/2}, \quad A_\ell = B_\ell (B_\ell^T L_\ell B_\ell)^{+1/2}, \quad
              B_\ell = P_\ell A_{\ell - 1}

    with :math:`V_R, \Lambda_R` the R lowest eigenvectors of the Laplacian :math:`L_0`, :math:`\Pi_C^\perp` the
    deviation from the mean inside C and zero outside, :math:`L_C` the Laplacian that counts edges inside C once and
    edges that leave it twice, :math:`P_\ell` the means over the sets of level l, and :math:`L_\ell` the Laplacian of
    the contracted graph. The norm is the spectral one. A level takes sets by rising cost, each node at most once.

    Args:
        weight: As for every strategy on edges.
        neighbors: As for every strategy on edges.
        rank: R, the eigenvectors to preserve.
        sets: The candidates: ``"edges"``, where the cost is :math:`\tfrac12 (d_i + d_j) \lVert a_i - a_j \rVert^2`; or
            ``"neighborhoods"``, each node with its neighbours. A neighbourhood of which some nodes are taken comes
            back without them; one too large for the budget comes back as its node with the heaviest neighbours.

    Raises:
        ValueError: For other sets or weights, a rank below 1, or edges between images.

    Cost: R eigenvectors (dense up to 1,024 tokens, LOBPCG beyond); then for edges as for
    :class:`tokengraph.HeavyEdges`, for neighbourhoods about 0.2 ms each on the host, and fewer levels.

    Ties: the pair of lower indices; the neighbourhood of the lower node.

    Source: Loukas, *Graph Reduction with Spectral and Cut Guarantees*, JMLR 20(116), 2019, of whose candidate sets
    cliques are not built.
    """

    name: ClassVar[str] = "local-variation"
    rank: int = 10
    sets: str = "edges"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(rank=self.rank)
        if self.sets not in ("edges", "neighborhoods"):
            raise ValueError(f"Expected sets to be 'edges' or 'neighborhoods' (got {self.sets!r}).")

    @property
    def method(self) -> str:
        """See :class:`~tokengraph.select.coarsening.edge_select.EdgeSelect`."""
        return "variation" if self.sets == "edges" else "variation/neighborhoods"

    @property
    def eigenvectors(self) -> int:
        """R."""
        return self.rank
