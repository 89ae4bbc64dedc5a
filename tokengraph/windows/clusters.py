"""Windows as smaller grids: clusters every window, joins the grids, and brings every token back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokengraph.flat.segment import weighted_sum
from tokengraph.kinds import explains
from tokengraph.maps.hard import Assignment
from tokengraph.select.cubist_merge import CubistMerge
from tokengraph.select.expedite.cluster import Clustering, How, cluster_tokens
from tokengraph.select.expedite.expedite import Expedite
from tokengraph.select.expedite.reconstruct import make_edges
from tokengraph.select.tokens import Tokens
from tokengraph.windows.grid import Cut, Pair, real, split, stitch


@dataclass(frozen=True, eq=False)
class WindowClusters(ABC):
    """A map clustered window by window, with the data that :meth:`restore` needs.

    Attributes:
        cut: How the map was cut into windows.
        clusters: ``(h, w)`` of each window.
    """

    cut: Cut
    clusters: Pair

    @property
    def map(self) -> Tensor:
        """The clusters as a map, ``[B, n*h, m*w, C]``."""
        return stitch(self.rows(), self.cut, window=self.clusters)

    @property
    def grid(self) -> Pair:
        """``(n*h, m*w)`` of that map."""
        return self.cut.cells[0] * self.clusters[0], self.cut.cells[1] * self.clusters[1]

    def restore(self, y: Tensor) -> Tensor:
        """Brings every token of the map back, window by window; padding is cropped.

        Args:
            y: The refined clusters, ``[B, n*h, m*w, D]``.

        Returns:
            ``[B, H, W, D]``, in the dtype of ``y``.
        """
        back = self.lift(split(y, self.clusters)[0].flatten(0, 1)).to(y.dtype)
        return stitch(back.view(-1, self.cut.window[0] * self.cut.window[1], y.size(3)), self.cut)

    @abstractmethod
    def rows(self) -> Tensor:
        """The clusters of each window, ``[W, h*w, C]``."""

    @abstractmethod
    def lift(self, rows: Tensor) -> Tensor:
        """Rows of all windows' tokens ``[W*a*b, D]`` from those of their clusters ``[W*h*w, D]``."""


@dataclass(frozen=True, eq=False)
class SoftWindows(WindowClusters):
    """Clusters of Expedite; ``restore`` is its reconstruction.

    Attributes:
        x: The windows that were clustered, ``[W, a*b, C]``.
        made: The clusters of these windows.
        select: The strategy, for its options.
    """

    x: Tensor
    made: Clustering
    select: Expedite

    def rows(self) -> Tensor:
        """The centres."""
        return (self.made.centers + self.made.origin).to(self.x.dtype)

    def lift(self, rows: Tensor) -> Tensor:
        """Mixes the nearest clusters; ``W a b h w C`` multiply-adds for distances, and k rows a token."""
        made, how = self.made, self.select
        z = self.x.to(made.centers.dtype) - made.origin
        token, cluster, weight = make_edges(
            z, made.centers, made.inv_temperature, how.neighbors, how.normalize, how.ties, how.mode
        )
        return weighted_sum(rows, weight, token, self.x.size(0) * self.x.size(1), source=cluster)


@dataclass(frozen=True, eq=False)
class MergedWindows(WindowClusters):
    """Clusters of CubistMerge: each token takes its cluster's row back.

    Attributes:
        merged: The clusters' rows, ``[W*h*w, C]``.
        assignment: The map over ``W*a*b`` tokens.
    """

    merged: Tensor
    assignment: Assignment

    def rows(self) -> Tensor:
        """The merged rows."""
        return self.merged.view(-1, self.clusters[0] * self.clusters[1], self.merged.size(1))

    def lift(self, rows: Tensor) -> Tensor:
        """Copies."""
        return self.assignment.lift(rows)


@explains
def cluster_windows(
    x: Tensor, window: Pair, clusters: Pair, select: Expedite | CubistMerge, *, padding: str = "tokens"
) -> WindowClusters:
    """Clusters every window of a map into a smaller grid; all windows form one batch.

    Args:
        x: ``[B, H, W, C]``.
        window: ``(a, b)``, tokens per window.
        clusters: ``(h, w)``, clusters per window.
        select: The strategy, for its options; its own grid is ignored.
        padding: ``"tokens"``: clusters padding like tokens, as published; ``"ignore"``: leaves it out.

    Cost: the strategy's for ``W = B*n*m`` images of ``a*b`` tokens; no host synchronisation.

    Source: Liang et al., *Expediting Large-Scale Vision Transformer for Dense Prediction without Fine-tuning*,
    NeurIPS 2022, released code for SAM and Swin; for CubistMerge our own reading.
    """
    windows, cut = split(x, window)
    mask = real(cut, x.device) if padding == "ignore" else None
    if isinstance(select, Expedite):
        how = How(select.iterations, select.temperature, select.window, select.empty, select.detach, "auto")
        made = cluster_tokens(windows, window, clusters, how, mask)
        return SoftWindows(cut, clusters, windows, made, select)
    size = None if mask is None else mask.to(torch.float32)
    chosen = replace(select, coarse=clusters)(Tokens(windows, size=size, grid=window), clusters[0] * clusters[1])
    rows, _ = chosen.reduce(windows.flatten(0, 1), None if size is None else size.flatten(), reduce=select.reduce)
    return MergedWindows(cut, clusters, rows, chosen)
