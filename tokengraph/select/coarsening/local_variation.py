"""Local variation: contracts edges along which the graph's smooth signals change least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokengraph.errors import check_positive
from tokengraph.select.coarsening.edge_select import EdgeSelect


@dataclass(frozen=True)
class LocalVariation(EdgeSelect):
    r"""Contracts edges of small local variation cost, level by level, so that low eigenvectors survive.

    .. math:: \operatorname{cost}(i, j) = \tfrac12 (d_i + d_j) \lVert a_i - a_j \rVert^2, \qquad
              A_0 = V_R \Lambda_R^{+1/2}, \quad A_\ell = B_\ell (B_\ell^T L_\ell B_\ell)^{+1/2}, \quad
              B_\ell = P_\ell A_{\ell - 1}

    with :math:`V_R, \Lambda_R` the R lowest eigenvectors of the Laplacian :math:`L_0`, :math:`P_\ell` the means over
    the pairs of level l, and :math:`L_\ell` the Laplacian of the contracted graph. A level takes pairs by rising cost,
    each node at most once.

    Args:
        weight: As for every strategy on edges.
        neighbors: As for every strategy on edges.
        rank: R, the eigenvectors to preserve.

    Cost: R eigenvectors (dense up to 1,024 tokens, LOBPCG beyond), then as for :class:`tokengraph.HeavyEdges`.

    Ties: the pair of lower indices.

    Source: Loukas, *Graph Reduction with Spectral and Cut Guarantees*, JMLR 20(116), 2019, the edge-based variant.
    Its candidate sets of neighbourhoods and cliques are not built.
    """

    name: ClassVar[str] = "local-variation"
    rank: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(rank=self.rank)

    @property
    def method(self) -> str:
        """See :class:`~tokengraph.select.coarsening.edge_select.EdgeSelect`."""
        return "variation"

    @property
    def eigenvectors(self) -> int:
        """R."""
        return self.rank
