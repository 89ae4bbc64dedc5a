"""Greedy modularity: communities that have more edges inside than chance gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokengraph.select.coarsening.edge_select import EdgeSelect


@dataclass(frozen=True)
class Modularity(EdgeSelect):
    r"""Merges communities by the modularity that a merge adds, until ``keep`` are left.

    .. math:: Q = \sum_c \frac{w_{cc}}{2m} - \Big( \frac{d_c}{2m} \Big)^2, \qquad
              \Delta Q_{ij} = \frac{w_{ij}}{m} - \frac{d_i d_j}{2 m^2}

    In each round all pairs merge that are the best partner of each other. :func:`tokengraph.communities` stops where
    no merge adds modularity instead of at a number.

    Args:
        weight: As for every strategy on edges.
        neighbors: As for every strategy on edges.

    Cost: some tens of rounds, each a sort of the edges and a pass over them.

    Ties: the pair of lower indices.

    Source: Clauset, Newman & Moore, *Finding Community Structure in Very Large Networks*, Phys. Rev. E 70, 2004.
    Differs: rounds of mutual best pairs, in place of one pair at a time.
    """

    name: ClassVar[str] = "modularity"

    @property
    def method(self) -> str:
        """See :class:`~tokengraph.select.coarsening.edge_select.EdgeSelect`."""
        return "modularity"
