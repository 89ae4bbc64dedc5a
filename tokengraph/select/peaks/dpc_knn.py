"""DPC-KNN: clusters around density peaks in feature space."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokengraph.cost import Cost, distance_cost
from tokengraph.errors import check_finite, check_mask, check_positive, check_tokens
from tokengraph.kinds import explains
from tokengraph.maps.hard import Assignment
from tokengraph.maps.pool import check_reduction
from tokengraph.schedule import Schedule, powers
from tokengraph.select.base import Select
from tokengraph.select.parts.choices.peaks import assign_to_centers, check_order, choose_centers, nearest_center
from tokengraph.select.parts.graphs.complete import Distances
from tokengraph.select.parts.scores.density import density_peaks
from tokengraph.select.peaks.ailurus import AiluRus, ailurus
from tokengraph.select.peaks.dpc_knn_parity import dpc_knn_parity
from tokengraph.select.tokens import Tokens, clamp_budget


@explains
def dpc_knn(
    x: Tensor,
    keep: int | list[int],
    *,
    k: int = 5,
    mask: Tensor | None = None,
    noise: Tensor | None = None,
    include_self: bool = True,
    importance: Tensor | None = None,
    order: str = "index",
    grid: tuple[int, ...] | None = None,
    window: int | None = None,
) -> Assignment:
    r"""Clusters tokens around density peaks; every token joins its nearest peak.

    .. math::
        \log\rho_i = -\tfrac1k \sum_{j \in kNN(i)} d_{ij}^2, \quad
        \delta_i = \min_{\rho_j > \rho_i} d_{ij}, \quad
        \text{centres} = \operatorname{top}_K \log\rho_i + \log\delta_i, \quad d_{ij} = \lVert x_i - x_j\rVert/\sqrt C

    Args:
        x: Token features, ``[B, N, C]``.
        keep: Clusters an image, at least 1; clamped to the image's tokens. A list gives one budget an image.
        k: Nearest tokens in the density; clamped to the image's tokens.
        mask: ``[B, N]`` bool, True where there is a token. Padding has no cluster and no effect.
        noise: ``[B, N]`` uniform numbers in [0, 1). Selects the published code's exact form ("parity"): it adds
            ``noise * 1e-6`` to exp densities, numbers clusters by score for every ``order``, and lets a masked image
            depend on other images of the batch. Zeros give its noise-free form. The mask may then be numeric: > 0
            where there is a token.
        include_self: Counts the token itself among its k nearest, as published.
        importance: ``[B, N]``; the ``keep`` highest become centres instead of the density peaks.
        order: Numbering of the clusters. ``"index"``: by the sequence order of their centres; ``"score"``: best centre
            first; ``"raster"``: by their first tokens. It does not change the clusters.
        grid: ``(H, W)`` of the tokens, in row-major order; for ``window``.
        window: Compares each token with this many of its nearest patches only, which is linear in N. It is then
            :func:`~tokengraph.select.peaks.ailurus.ailurus` with ``alpha=1``, one budget and no mask.

    Returns:
        The map over ``B*N`` tokens (over the True ones of ``mask``), with ``centers``. Every cluster has its centre.

    Raises:
        ValueError: If ``keep`` or ``k`` is below 1, tokens or importance are not finite or do not fit the mask, or
            ``importance`` or ``include_self=False`` comes with ``noise``.
        TypeError: If ``keep`` is not whole or ``mask`` is not bool.

    Cost: ``O(B N^2 C)`` time, ``B N^2`` floats in chunks of at most 256 MB; no host synchronisation without a mask.

    If matrix products lose the digits of close pairs, eager CPU runs subtract instead, inside models too. CUDA and
    compiled runs always use products.

    Example:
        >>> x = torch.tensor([[[0.0], [0.1], [5.0], [5.1]]])
        >>> dpc_knn(x, 2, k=2).cluster.tolist()
        [0, 0, 1, 1]

    Source: Zeng et al., *Not All Tokens Are Equal* (TCFormer), CVPR 2022, and its code. Differs by default: densities
    stay in the log domain, ties go to the lower index instead of to noise, masked tokens are not in the map.
    """
    check_tokens(x)
    check_positive(k=k)
    check_order(order, "raster")
    if noise is not None and isinstance(mask, Tensor):
        mask = mask > 0
    check_mask(mask, x)
    check_finite(x if mask is None else x[mask])
    _check_importance(importance, x, mask)
    if window is not None:
        _check_window(window, grid, keep, mask, noise, importance)
        assert grid is not None and isinstance(keep, int)
        return ailurus(x, keep, grid, k=k, lam=window, alpha=1.0, include_self=include_self, order=order)
    if noise is not None:
        _check_parity(include_self, importance)
    if noise is not None and x.size(0) and x.size(1):
        return dpc_knn_parity(x, clamp_budget(keep, x, None), k=k, mask=mask, noise=noise).assignment
    return _dpc_knn(x, keep, k, mask, include_self, importance, order)


@dataclass(frozen=True)
class DPCKNN(Select):
    """DPC-KNN as a strategy, after a block, on the features; see :func:`dpc_knn`.

    Args:
        k: Nearest tokens in the density. 3 keep features nearer to the dense ones than the published 5 in most settings
            (``make truth``: photographs, solar cells, a small ViT). With 2, the token itself and its nearest, mutual
            neighbours always tie, and the order of the tokens decides.
        include_self: Counts the token itself among them.
        order: Numbering of the clusters: ``"index"``, ``"score"`` or ``"raster"``. Use ``"raster"`` if later modules
            read the tokens as a sequence.
        sizes: Weigh tokens by size in attention and in later means. TokenReduction forgets sizes in each layer, see
            :meth:`per_layer`.
        reduce: How clusters pool: any of :meth:`tokengraph.Assignment.reduce`. ``None``: the mean on graphs, where it
            composes level by level; MLERP inside a model, where it keeps features nearer to the dense ones wherever
            many tokens go (measured by ``make truth``).
        window: Compares each token with this many of its nearest patches only, which is linear in the number of
            tokens; it then works on the full grid, once a model. ``None``: with all tokens.
    """

    name: ClassVar[str] = "dpc-knn"
    aliases: ClassVar[Mapping[str, Mapping[str, Any]]] = {"tcformer": {"k": 5}, "ctm": {"k": 5}}
    reads: ClassVar[str] = "nothing"
    placement: ClassVar[str] = "after"
    reduction: ClassVar[str] = "mlerp"
    k: int = 3
    include_self: bool = True
    order: str = "index"
    sizes: bool = True
    reduce: str | None = None
    window: int | None = None

    @classmethod
    def published(cls) -> DPCKNN:
        """Returns TCFormer's settings: 5 tokens with itself, best centre first. Its noise is in :func:`dpc_knn`.

        Source: the code of Zeng et al., CVPR 2022.
        """
        return cls(5, include_self=True, order="score", reduce="mean")

    @classmethod
    def per_layer(cls) -> DPCKNN:
        """The method as TokenReduction has it, in several layers, each of which forgets the sizes of those before.

        Its ``equal_weight`` form without noise; the other weighs means by a trained layer, which is not here.

        Source: Haurum et al., *Which Tokens to Use?*, ICCV workshop 2023, and its code.
        """
        return cls(5, include_self=True, order="score", sizes=False, reduce="mean")

    @staticmethod
    def per_layer_schedule(keep: float = 0.9) -> Schedule:
        """Before blocks 3, 6 and 9: ``int(N * keep)`` tokens, then with the second and third power of ``keep``."""
        return powers(keep, (3, 6, 9))

    @property
    def weighs(self) -> bool:
        """As ``sizes`` says."""
        return self.sizes

    def reduction_at(self, layer: int) -> str:
        """As ``reduce`` says; see :meth:`tokengraph.Select.reduction_at`."""
        return self.reduce or ("mean" if layer < 0 and self.reduction == "mlerp" else self.reduction)

    def __post_init__(self) -> None:
        check_positive(k=self.k)
        check_order(self.order, "raster")
        if self.reduce is not None:
            check_reduction(self.reduce)
        if self.window is not None:
            check_positive(window=self.window)

    @property
    def needs_grid(self) -> bool:  # type: ignore[override]
        """True with a ``window``, which is one of the patch grid."""
        return self.window is not None

    @property
    def alone(self) -> bool:  # type: ignore[override]
        """True with a ``window``, which takes one grid."""
        return self.window is not None

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> Assignment:
        """Maps the tokens to clusters; see :class:`tokengraph.Select`."""
        if self.window is not None:
            near = AiluRus(self.k, self.window, 1.0, self.include_self, self.order)
            return near(tokens, budget)
        return _dpc_knn(tokens.x, budget, self.k, tokens.mask, self.include_self, None, self.order)

    def cost(self, num_tokens: int, keep: int, channels: int, head_width: int = 64) -> Cost:
        """Counts distances of all pairs, a top-k, a masked minimum, and (cached) distances to centres."""
        pairs = num_tokens * num_tokens
        return distance_cost(num_tokens, num_tokens, channels) + Cost(3 * pairs + keep * num_tokens, 12 * pairs)


def _check_parity(include_self: bool, importance: Tensor | None) -> None:
    if importance is not None:
        raise ValueError("Expected no importance in parity mode (got importance and noise). Leave noise out.")
    if not include_self:
        raise ValueError("Expected include_self=True in parity mode (got include_self=False). Leave noise out.")


def _check_window(
    window: int,
    grid: tuple[int, ...] | None,
    keep: int | list[int],
    mask: Tensor | None,
    noise: Tensor | None,
    importance: Tensor | None,
) -> None:
    check_positive(window=window)
    if grid is None:
        raise ValueError("Expected the grid of the tokens for a window (got none). Give grid=(H, W).")
    if mask is not None or noise is not None or importance is not None or not isinstance(keep, int):
        raise ValueError(
            "Expected one budget, and no mask, noise or importance, with a window (got one of them). Call it image by "
            "image, or leave the window out."
        )


def _check_importance(importance: Tensor | None, x: Tensor, mask: Tensor | None) -> None:
    if importance is None:
        return
    if not isinstance(importance, Tensor) or importance.shape != x.shape[:2]:
        got = list(importance.shape) if isinstance(importance, Tensor) else type(importance).__name__
        raise ValueError(f"Expected importance of shape [B, N] = {list(x.shape[:2])} (got {got}).")
    check_finite((importance if mask is None else importance[mask])[..., None], "importance")


def _dpc_knn(
    x: Tensor,
    keep: int | list[int],
    k: int,
    mask: Tensor | None,
    include_self: bool,
    importance: Tensor | None,
    order: str,
) -> Assignment:
    budget = clamp_budget(keep, x, mask)
    images, tokens = x.shape[:2]
    most = max(budget, default=0) if isinstance(budget, list) else budget
    if budget == tokens or images == 0 or tokens == 0:
        everyone = torch.arange(tokens, device=x.device).expand(images, tokens)
        return Assignment.from_dense(everyone, budget, mask=mask, centers=everyone[:, :most])
    if include_self and k == 1 and not torch.compiler.is_compiling():
        warnings.warn("k=1 with the token itself counted: all densities are equal, centres follow the index.",
                      stacklevel=4)  # fmt: skip
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        pairs = Distances(x.detach(), mask)
        if importance is None:
            score, by_density = density_peaks(pairs, k, mask, include_self)
        else:
            score = importance.float() if mask is None else importance.float().masked_fill(~mask, -torch.inf)
            by_density = score.argsort(dim=1, descending=True, stable=True)
        centers = choose_centers(score, by_density, most)
        center = nearest_center(pairs, centers, budget, mask)
        return assign_to_centers(center, centers, budget, mask=mask, order=order)
