"""Expedite: clusters the tokens of a grid for the following blocks, and reconstructs every token after them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from tokengraph.cost import Cost
from tokengraph.edges.cells import tile_pairs
from tokengraph.edges.grid import Grid
from tokengraph.errors import check_finite, check_grid, check_mask, check_positive, check_tokens
from tokengraph.flat.segment import as_type, wide
from tokengraph.flat.tables import equal_ptr
from tokengraph.kinds import explains
from tokengraph.maps.hard import Assignment
from tokengraph.maps.soft import Edges, SoftAssignment
from tokengraph.select.base import Select
from tokengraph.select.expedite.cluster import Clustering, How, check_clustering, cluster_tokens
from tokengraph.select.expedite.reconstruct import check_reconstruction, make_edges
from tokengraph.select.tokens import Tokens, clamp_budget

INV_TEMPERATURE = "auto"  # the best fixed value differs with model and depth, 20 to 2 in one ViT-S/14
RELEASED = 0.02  # suits the residual stream of the published ViT-L


@explains
def expedite(
    x: Tensor,
    grid: Grid,
    clusters: Grid,
    *,
    iterations: int = 5,
    inv_temperature: float | str = INV_TEMPERATURE,
    tau: float | None = None,
    window: int = 5,
    neighbors: int = 20,
    normalize: str = "softmax",
    ties: str = "k",
    mode: str = "soft",
    empty: str = "keep",
    detach: bool = True,
    form: str = "auto",
    mask: Tensor | None = None,
    label_map: str = "nearest",
) -> SoftAssignment:
    """Clusters the tokens of a grid into a smaller grid; the map can reconstruct tokens from clusters.

    ``reduce`` uses the last soft assignment of :func:`~tokengraph.select.expedite.cluster.token_clustering`. ``lift``
    uses the edges of :func:`~tokengraph.select.expedite.reconstruct.token_reconstruction`, computed on its first call.

    Args:
        x: Tokens of the full grid in row-major order, ``[B, H*W, C]``. Attention windows count as images.
        grid: ``(H, W)``; ``(T, H, W)`` for a video.
        clusters: ``(h, w)``; ``(t, h, w)`` for a video, with t = T as published.
        iterations: Iterations of the clustering; 0 averages over the bins of the small grid.
        inv_temperature: t, the factor on squared distances in clustering and reconstruction. It depends on the scale
            of the features; ``"auto"`` is 5 over each image's median squared distance to the own cell's average.
            The published value, 0.02, suits one model only.
        tau: ``1 / t``, as an alternative to ``inv_temperature``.
        window: Side of the square of candidate clusters, a cube in a video, odd.
        neighbors: k of the reconstruction; -1 means all clusters.
        normalize: ``"softmax"``, or ``"l2"`` as released.
        ties: ``"k"``, or ``"released"``: more than k clusters where distances tie.
        mode: ``"soft"``, or ``"hard"``: each token becomes a copy of its nearest cluster.
        empty: ``"keep"``, or ``"zero"`` as released, for clusters that no token is near enough to.
        detach: Stops gradients through the weights of the clustering.
        form: Implementation of the clustering: ``"auto"``, ``"dense"``, ``"edges"`` or ``"tiles"``.
        mask: ``[B, H*W]`` bool, False for padding, which then affects no cluster; ``None``: it counts as tokens, as
            released. Crop the lifted rows at padding; they have no meaning.
        label_map: Definition of a patch's own cell: ``"nearest"``; or ``"trilinear"``, for videos, as released; see
            :func:`~tokengraph.select.expedite.cluster.token_clustering`.

    Returns:
        The map over ``B*N`` tokens. ``centroids`` are the clusters, in the dtype of ``x``; ``reduce`` of ``x`` gives
        the same, except for empty clusters and clusters of padding only. Each token's weights sum to one for
        ``iterations >= 1``; those of padding are zero.

    Raises:
        ValueError: If the grid does not match N, an option is unknown, or both temperatures are given.

    Cost: the clustering's, and at the first lift the reconstruction's; see there.

    Example:
        >>> import torch
        >>> a = expedite(torch.tensor([[[0.0], [0.0], [9.0], [9.0]]]), (1, 4), (1, 2), inv_temperature=1.0)
        >>> a.centroids.round().tolist()
        [[0.0], [9.0]]

    Source: Liang et al., *Expediting Large-Scale Vision Transformer for Dense Prediction without Fine-tuning*,
    NeurIPS 2022. Differs: softmax weights in the reconstruction, exactly k neighbours, float32 inside, empty clusters
    keep their value; in a video a patch's own cell is the nearest one. The released behaviour: ``normalize="l2",
    ties="released", empty="zero"``, and in videos ``label_map="trilinear"``.
    """
    check_tokens(x)
    how = Expedite(
        None, iterations, inv_temperature, tau, window, neighbors, normalize, ties, mode, empty, detach, label_map
    )  # checks
    check_clustering(iterations, how.temperature, window, empty, form, label_map)
    check_finite(x)
    check_mask(mask, x)
    return _expedite(x, check_grid(grid, x.size(1), video=True), clusters, how, form, mask)


@dataclass(frozen=True)
class Expedite(Select):
    """Expedite as a strategy, before a block, on the full grid; see :func:`expedite` for the options.

    Args:
        clusters: ``(h, w)``, or ``(t, h, w)`` for videos; ``None``: the largest grid within the budget that keeps the
            aspect ratio and all frames.
        iterations: Iterations of the clustering.
        inv_temperature: t, or ``"auto"``, the default by measurement; published 0.02.
        tau: ``1 / t``, as an alternative to ``inv_temperature``.
        window: Side of the square of candidate clusters, odd.
        neighbors: k of the reconstruction; -1 means all clusters.
        normalize: ``"softmax"`` or ``"l2"``.
        ties: ``"k"`` or ``"released"``.
        mode: ``"soft"`` or ``"hard"``.
        empty: ``"keep"`` or ``"zero"``.
        detach: Stops gradients through the weights of the clustering.
        label_map: ``"nearest"``, or ``"trilinear"`` for videos.
    """

    name: ClassVar[str] = "expedite"
    aliases: ClassVar[Mapping[str, Mapping[str, Any]]] = {"token-clustering": {}}
    alone: ClassVar[bool] = True
    placement: ClassVar[str] = "before"
    merges: ClassVar[bool] = False
    needs_grid: ClassVar[bool] = True
    reads: ClassVar[str] = "nothing"
    clusters: Grid | None = None
    iterations: int = 5
    inv_temperature: float | str = INV_TEMPERATURE
    tau: float | None = None
    window: int = 5
    neighbors: int = 20
    normalize: str = "softmax"
    ties: str = "k"
    mode: str = "soft"
    empty: str = "keep"
    detach: bool = True
    label_map: str = "nearest"

    def __post_init__(self) -> None:
        if self.tau is not None and self.inv_temperature != INV_TEMPERATURE:
            raise ValueError(
                f"Expected inv_temperature or tau (got both, {self.inv_temperature} and {self.tau}). One is 1 / other."
            )
        if self.tau is not None and not 0 < self.tau < math.inf:
            raise ValueError(f"Expected tau > 0 (got tau={self.tau}).")
        check_clustering(self.iterations, self.temperature, self.window, self.empty, label_map=self.label_map)
        check_reconstruction(self.neighbors, self.normalize, self.ties, self.mode)
        if self.clusters is not None:
            if not isinstance(self.clusters, tuple) or len(self.clusters) not in (2, 3):
                raise TypeError(
                    f"Expected clusters as a tuple (h, w), or (t, h, w) for videos (got {self.clusters!r})."
                )
            check_positive(**dict(zip("wht", reversed(self.clusters), strict=False)))

    @classmethod
    def published(cls, clusters: Grid | None = None) -> Expedite:
        """Returns the released behaviour for images: t = 0.02, L2 weights and ties, empty clusters at zero.

        Args:
            clusters: ``(h, w)``; ``None`` derives it from the budget. The released code has no default.

        Source: the code of Liang et al., NeurIPS 2022.
        """
        return cls(clusters, inv_temperature=RELEASED, normalize="l2", ties="released", empty="zero")

    @property
    def temperature(self) -> float | str:
        """t, from ``inv_temperature`` or ``tau``."""
        return self.inv_temperature if self.tau is None else 1.0 / self.tau

    @property
    def own_budget(self) -> int | None:
        """Clusters an image by ``clusters``; ``None`` if the budget decides."""
        return None if self.clusters is None else math.prod(self.clusters)

    @property
    def restores(self) -> bool:
        """True, because Expedite includes the reconstruction."""
        return True

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> SoftAssignment:
        """Maps the tokens to clusters; see :class:`tokengraph.Select`."""
        if tokens.grid is None or not tokens.full or tokens.mask is not None or isinstance(budget, list):
            raise ValueError(
                "Expected one full patch grid for all images (got tokens that are coarsened, ragged, dropped in train "
                "mode or shuffled as in ViTMAE). Use DPCKNN there."
            )
        images, count = tokens.x.shape[:2]
        keep = clamp_budget(budget, tokens.x, None)
        assert isinstance(keep, int)
        if keep == count:
            ptr = equal_ptr(images, count, tokens.x.device)
            same = Assignment.identity(images * count, ptr=ptr, device=tokens.x.device)
            return replace(SoftAssignment.from_hard(same), lossless=True)
        return _expedite(tokens.x, tokens.grid, self._grid_for(keep, tokens.grid), self, "auto")

    def makes(self, keep: int, num_tokens: int, grid: Grid | None = None) -> int:
        """Returns the cells of the largest grid within ``keep``; without a grid it assumes a square of patches."""
        if keep >= num_tokens:
            return num_tokens
        if self.own_budget is not None:
            return self.own_budget
        side = math.isqrt(num_tokens)
        if grid is None and side * side != num_tokens:
            return keep
        return math.prod(cluster_grid(grid or (side, side), keep))

    def cost(self, num_tokens: int, keep: int, channels: int, head_width: int = 64) -> Cost:
        """Counts two products an iteration over the multiplied pairs, and the distances of the reconstruction."""
        frames = self.clusters[:1] if self.clusters and len(self.clusters) == 3 else ()
        patches = max(num_tokens // math.prod(frames), 1)
        side = max(math.isqrt(patches), 1)
        grid = (*frames, side, max(patches // side, 1))
        clusters = self.clusters or cluster_grid(grid, keep)
        pairs = math.prod(grid) * math.prod(clusters)
        if self.label_map == "nearest":
            pairs = min(tile_pairs(grid, clusters, self.window), pairs)
        passes = 4 * (num_tokens + keep) * channels
        step = Cost(4 * pairs * channels + 6 * pairs, 2 * passes + 24 * pairs)
        distances = Cost(2 * num_tokens * keep * channels, passes + 4 * num_tokens * keep)
        return Cost(2 * num_tokens * channels, 2 * passes) + step * self.iterations + distances

    def _grid_for(self, keep: int, grid: Grid) -> Grid:
        if self.clusters is None:
            return cluster_grid(grid, keep)
        if keep != self.own_budget:
            raise ValueError(
                f"Expected a budget of {'*'.join('thw'[-len(self.clusters) :])}={self.own_budget} tokens, as "
                f"clusters={self.clusters} says (got {keep}). Leave clusters out to let the budget decide."
            )
        return self.clusters


def cluster_grid(grid: Grid, keep: int) -> Grid:
    """Returns the grid ``(h, w)`` with the most cells, ``h * w <= keep``, and about the aspect ratio of ``grid``.

    In a video each frame has cells of its own, as published, if ``keep`` is at least the number of frames.

    Example:
        >>> cluster_grid((40, 40), 784), cluster_grid((6, 8), 30), cluster_grid((1, 7), 5)
        ((28, 28), (5, 6), (1, 5))
        >>> cluster_grid((8, 12, 12), 288), cluster_grid((8, 12, 12), 5)
        ((8, 6, 6), (5, 1, 1))
    """
    if len(grid) == 3:
        frames = min(grid[0], keep)
        return (frames, *cluster_grid(grid[1:], keep // frames))
    height, width = grid
    ideal = math.sqrt(keep * height / width)
    rows = {min(max(h, 1), height, keep) for h in (math.floor(ideal), math.ceil(ideal))}
    made = [(h, min(width, keep // h)) for h in sorted(rows)]
    return max(made, key=lambda c: (c[0] * c[1], -abs(math.log(c[0] * width / (c[1] * height)))))


def _expedite(
    x: Tensor, grid: Grid, clusters: Grid, how: Expedite, form: str, mask: Tensor | None = None
) -> SoftAssignment:
    images, tokens = x.shape[:2]
    way_down = How(how.iterations, how.temperature, how.window, how.empty, how.detach, form, how.label_map)
    made = cluster_tokens(x, grid, clusters, way_down, mask)
    count = made.centers.size(1)
    ptr, cluster_ptr = equal_ptr(images, tokens, x.device), equal_ptr(images, count, x.device)
    return SoftAssignment(
        (made.token + ptr[:-1, None]).flatten(),
        (made.cluster + cluster_ptr[:-1, None]).flatten(),
        made.weight.flatten(),
        images * tokens,
        images * count,
        up=_Reconstruction(x, made, how),
        ptr=ptr,
        cluster_ptr=cluster_ptr,
        centroids=as_type(made.centers + made.origin, x.dtype).flatten(0, 1),
        lossless=how.iterations > 0 and mask is None,
    )


@dataclass(frozen=True, eq=False)
class _Reconstruction:
    """Computes the reconstruction edges when a lift needs them. A class, not a closure, so that maps can be pickled."""

    x: Tensor
    made: Clustering
    how: Expedite

    def __call__(self) -> Edges:
        made, how = self.made, self.how
        z = as_type(self.x, wide(self.x)) - made.origin
        return make_edges(z, made.centers, made.inv_temperature, how.neighbors, how.normalize, how.ties, how.mode)
