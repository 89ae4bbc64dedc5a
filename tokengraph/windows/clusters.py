"""Expedite in windows: clusters every window into a small grid, joins the grids, and reconstructs every token."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tokengraph.flat.segment import weighted_sum
from tokengraph.select.expedite.cluster import Clustering, How, cluster_tokens
from tokengraph.select.expedite.expedite import Expedite
from tokengraph.select.expedite.reconstruct import make_edges
from tokengraph.windows.grid import Cut, Pair, real, split, stitch


@dataclass(frozen=True, eq=False)
class WindowClusters:
    """A map clustered window by window, with the data that :meth:`restore` needs.

    Attributes:
        x: The windows that were clustered, ``[W, a*b, C]``.
        cut: How the map was cut into them.
        clusters: ``(h, w)`` of each window.
        made: The clusters of these windows.
        select: The strategy, for its options.
    """

    x: Tensor
    cut: Cut
    clusters: Pair
    made: Clustering
    select: Expedite

    @property
    def map(self) -> Tensor:
        """The clusters as a map, ``[B, n*h, m*w, C]``."""
        centers = (self.made.centers + self.made.origin).to(self.x.dtype)
        return stitch(centers, self.cut, window=self.clusters)

    @property
    def grid(self) -> Pair:
        """``(n*h, m*w)`` of that map."""
        return self.cut.cells[0] * self.clusters[0], self.cut.cells[1] * self.clusters[1]

    def restore(self, y: Tensor) -> Tensor:
        """Reconstructs every token of the map, window by window; padding is cropped.

        Args:
            y: The refined clusters, ``[B, n*h, m*w, D]``.

        Returns:
            ``[B, H, W, D]``, in the dtype of ``y``.

        Cost: ``W a b h w C`` multiply-adds for distances, and k rows a token.
        """
        made, how = self.made, self.select
        z = self.x.to(made.centers.dtype) - made.origin
        token, cluster, weight = make_edges(
            z, made.centers, made.inv_temperature, how.neighbors, how.normalize, how.ties, how.mode
        )
        windows, tokens = self.x.shape[:2]
        rows = split(y, self.clusters)[0].flatten(0, 1)
        back = weighted_sum(rows, weight, token, windows * tokens, source=cluster).to(y.dtype)
        return stitch(back.view(windows, tokens, -1), self.cut)


def cluster_windows(
    x: Tensor, window: Pair, clusters: Pair, select: Expedite, *, padding: str = "tokens"
) -> WindowClusters:
    """Clusters every window of a map into a smaller grid; all windows form one batch.

    Args:
        x: ``[B, H, W, C]``.
        window: ``(a, b)``, tokens per window.
        clusters: ``(h, w)``, clusters per window.
        select: The strategy, for its options; its own ``clusters`` is ignored.
        padding: ``"tokens"``: clusters padding like tokens, as published; ``"ignore"``: leaves it out.

    Cost: Expedite's for ``W = B*n*m`` images of ``a*b`` tokens; no host synchronisation.

    Source: Liang et al., *Expediting Large-Scale Vision Transformer for Dense Prediction without Fine-tuning*,
    NeurIPS 2022, released code for SAM and Swin.
    """
    windows, cut = split(x, window)
    mask = real(cut, x.device) if padding == "ignore" else None
    how = How(select.iterations, select.temperature, select.window, select.empty, select.detach, "auto")
    return WindowClusters(windows, cut, clusters, cluster_tokens(windows, window, clusters, how, mask), select)
