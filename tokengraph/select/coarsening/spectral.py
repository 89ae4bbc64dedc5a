"""Spectral clustering: k-means on low eigenvectors of the normalised Laplacian."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokengraph.errors import check_positive
from tokengraph.select.coarsening.edge_select import EdgeSelect


@dataclass(frozen=True)
class SpectralClustering(EdgeSelect):
    r"""Clusters tokens by the rows of low eigenvectors of :math:`I - D^{-1/2} W D^{-1/2}`.

    Rows are scaled to unit length; k-means starts from farthest points, without random numbers, and leaves no cluster
    empty.

    Args:
        weight: As for every strategy on edges.
        neighbors: As for every strategy on edges.
        rank: Eigenvectors; ``None``: as many as clusters, as published.

    Cost: the eigenvectors, dense (``O(N^3)``) up to 1,024 tokens or where ``24 * rank > N``, by LOBPCG otherwise; then
    at most 20 steps of ``O(N * keep * rank)``. Images go one by one.

    Source: Ng, Jordan & Weiss, *On Spectral Clustering*, NeurIPS 2001. Differs: the start of k-means.
    """

    name: ClassVar[str] = "spectral"
    rank: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank is not None:
            check_positive(rank=self.rank)

    @property
    def method(self) -> str:
        """See :class:`~tokengraph.select.coarsening.edge_select.EdgeSelect`."""
        return "spectral"

    @property
    def eigenvectors(self) -> int:
        """The rank; 0: as many as clusters."""
        return self.rank or 0
