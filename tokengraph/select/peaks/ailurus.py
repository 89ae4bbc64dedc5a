"""AiluRus: clusters around density peaks within spatial windows, linear in the number of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokengraph.cost import Cost, distance_cost
from tokengraph.edges.window import window_graph, window_tiles
from tokengraph.edges.window_distance import look_up, window_distances
from tokengraph.errors import check_finite, check_grid, check_positive, check_tokens
from tokengraph.flat.tables import counting, table, zeros
from tokengraph.kinds import explains
from tokengraph.maps.hard import Assignment
from tokengraph.maps.pool import check_reduction
from tokengraph.select.base import Select
from tokengraph.select.parts.choices.peaks import assign_to_centers, check_order, choose_centers
from tokengraph.select.parts.scores.density import window_peaks
from tokengraph.select.peaks.orphans import EPS, adopt_orphans
from tokengraph.select.tokens import Tokens, clamp_budget


@explains
def ailurus(
    x: Tensor,
    keep: int,
    grid: tuple[int, ...],
    *,
    k: int = 5,
    lam: int = 50,
    alpha: float = 0.9,
    include_self: bool = False,
    order: str = "index",
) -> Assignment:
    r"""Clusters the tokens of a patch grid around density peaks; each token compares with its nearest patches only.

    With :math:`r_{ij}` the rank of patch j by grid distance from i, and
    :math:`d_{ij} = \lVert x_i - x_j\rVert / \sqrt C`:

    .. math::
        \sigma_{ij} = (\alpha + (1 - \alpha)\, r_{ij} / \lambda)\,(d_{ij} + \epsilon), \quad r_{ij} \le \lambda, \qquad
        \log\rho_i = -\tfrac1k \sum_{kNN} \sigma_{ij}^2, \qquad
        \delta_i = \min_{\rho_j > \rho_i} \sigma_{ij}

    The ``keep`` tokens with the largest :math:`\log\rho + \log\delta` are the anchors. Every token joins the anchor in
    its window with the smallest sigma; if there is none, it joins the anchor with the smallest sigma in the image.

    Args:
        x: Features of the full grid in row-major order, ``[B, H*W, C]``.
        keep: Clusters an image, at least 1; clamped to N.
        grid: ``(H, W)``; ``(T, H, W)`` for a video, with windows of the nearest patches in space and time.
        k: Neighbours in the density; clamped to the window.
        lam: Patches in a window.
        alpha: Spatial factor at rank 0, in [0, 1]. At 1 distance matters only through the window; at 0 the factor is
            proportional to the rank.
        include_self: Counts the token itself among its k nearest.
        order: Numbering of the clusters. ``"index"``: by the grid order of their anchors; ``"score"``: best anchor
            first; ``"raster"``: by their first patches. It does not change the clusters.

    Returns:
        The map over ``B*N`` tokens, with ``centers``. Every cluster has its anchor.

    Raises:
        ValueError: If ``keep``, ``k`` or ``lam`` is below 1, ``alpha`` outside [0, 1], the grid does not match N, or
            tokens are not finite.
        TypeError: If ``keep`` is not one int.

    Cost: ``O(B N lam C)`` at most, by matrix products of tiles; memory linear in N. One host synchronisation on CUDA,
    to check whether every token has an anchor.

    Source: Li et al., *AiluRus*, NeurIPS 2023, for the idea: spatially restricted density peaks at an early layer,
    undone at the end. The formulae, lambda, alpha and k are this project's own choices, not the paper's.
    """
    check_tokens(x)
    _check(k, lam, alpha, order)
    grid = check_grid(grid, x.size(1), video=True)
    if isinstance(keep, list | tuple):
        raise TypeError(
            f"Expected keep as one int for all images (got {keep!r}). Use dpc_knn for per-image budgets, or call "
            "ailurus image by image."
        )
    check_finite(x)
    return _ailurus(x, keep, grid, k, lam, alpha, include_self, order)


@dataclass(frozen=True)
class AiluRus(Select):
    """AiluRus as a strategy, after a block, once a model; see :func:`ailurus`.

    Args:
        k: Neighbours in the density.
        lam: Patches in a window.
        alpha: Spatial factor at rank 0. The paper gives neither k nor alpha. 3 and 0.7 keep features nearer to the
            dense ones than 5 and 0.9, the defaults of :func:`ailurus` (``make truth``: photographs, a small ViT; on
            solar cells, and in single settings, at most 0.0015 farther).
        include_self: Counts the token itself among its k nearest.
        order: ``"index"``, ``"score"`` or ``"raster"``, as for :func:`ailurus`.
        reduce: How clusters pool: any of :meth:`tokengraph.Assignment.reduce`. ``None``: the mean on graphs, where it
            composes level by level; MLERP inside a model, where it keeps features nearer to the dense ones wherever
            many tokens go (measured by ``make truth``).
    """

    name: ClassVar[str] = "ailurus"
    alone: ClassVar[bool] = True
    reads: ClassVar[str] = "nothing"
    placement: ClassVar[str] = "after"
    reduction: ClassVar[str] = "mlerp"
    needs_grid: ClassVar[bool] = True
    k: int = 3
    lam: int = 50
    alpha: float = 0.7
    include_self: bool = False
    order: str = "index"
    reduce: str | None = None

    def __post_init__(self) -> None:
        _check(self.k, self.lam, self.alpha, self.order)
        if self.reduce is not None:
            check_reduction(self.reduce)

    def reduction_at(self, layer: int) -> str:
        """As ``reduce`` says; see :meth:`tokengraph.Select.reduction_at`."""
        return self.reduce or ("mean" if layer < 0 and self.reduction == "mlerp" else self.reduction)

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> Assignment:
        """Maps the tokens to clusters; see :class:`tokengraph.Select`."""
        if tokens.grid is None or not tokens.full or tokens.mask is not None or isinstance(budget, list):
            raise ValueError(
                "Expected one full patch grid for all images (got tokens that are coarsened, ragged, dropped in train "
                "mode or shuffled as in ViTMAE). Use DPCKNN there."
            )
        return _ailurus(tokens.x, budget, tokens.grid, self.k, self.lam, self.alpha, self.include_self, self.order)

    def cost(self, num_tokens: int, keep: int, channels: int, head_width: int = 64) -> Cost:
        """Counts products of 8 x 8 tiles with their candidates, and a few passes over the window edges."""
        edges = num_tokens * min(self.lam, max(num_tokens - 1, 0))
        side = max(round(num_tokens**0.5), 1)
        tiles = window_tiles((side, side), self.lam)
        products = distance_cost(tiles.queries.size(1), tiles.candidates.size(1), channels) * tiles.queries.size(0)
        return products + Cost(12 * edges, 40 * edges)


def _check(k: int, lam: int, alpha: float, order: str) -> None:
    check_positive(k=k, lam=lam)
    if not 0 <= alpha <= 1:
        raise ValueError(f"Expected alpha in [0, 1] (got alpha={alpha}).")
    check_order(order, "raster")


def _ailurus(
    x: Tensor, keep: int, grid: tuple[int, ...], k: int, lam: int, alpha: float, include_self: bool, order: str
) -> Assignment:
    images, tokens, _ = x.shape
    keep = clamp_budget(keep, x, None)  # type: ignore[assignment]
    if keep == tokens or images == 0:
        everyone = torch.arange(tokens, device=x.device).expand(images, tokens)
        return Assignment.from_dense(everyone, keep, centers=everyone[:, :keep])
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        x = x.detach()
        window = window_graph(grid, lam, device=x.device)
        factor = _factor(window.size(1), lam, float(alpha).hex(), str(x.device))
        sigma = window_distances(x, grid, lam).add_(EPS).mul_(factor)
        score, by_density = window_peaks(sigma, window, k, include_self)
        anchors = choose_centers(score, by_density, keep)
        anchored = zeros(images, tokens, x.device, torch.bool).scatter(1, anchors, True)
        # The nearest anchor in the window; window columns are sorted by rank, and min takes the first of equals.
        reachable = torch.where(look_up(anchored, window), sigma, torch.inf)
        least, best = reachable.min(dim=2)
        orphan = least == torch.inf
        center = window.expand(images, -1, -1).gather(2, best[..., None]).squeeze(2)
        center = torch.where(anchored, counting(tokens, x.device), center)
        frames = grid[:1] if len(grid) == 3 else ()
        center = adopt_orphans(center, orphan > anchored, x, anchors, grid[-2], grid[-1], lam, alpha, *frames)
        return assign_to_centers(center, anchors, keep, mask=None, order=order)


@table(64)
def _factor(width: int, lam: int, alpha: str, device: str) -> Tensor:
    """Returns the spatial factor of each rank in a window, ``[L]``."""
    near = float.fromhex(alpha)
    return near + (1 - near) * torch.arange(1, width + 1, device=device, dtype=torch.float32) / lam
