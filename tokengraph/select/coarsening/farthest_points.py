"""Farthest points: centres that cover the features, each token at its nearest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokengraph.cost import Cost
from tokengraph.errors import check_finite, check_mask, check_tokens
from tokengraph.kinds import explains
from tokengraph.maps.hard import Assignment
from tokengraph.select.base import Select
from tokengraph.select.coarsening.heavy_edges import BACKENDS
from tokengraph.select.parts.choices.farthest import by_torch_cluster, farthest_centers
from tokengraph.select.parts.choices.peaks import assign_to_centers, nearest_center
from tokengraph.select.parts.graphs.complete import Distances
from tokengraph.select.tokens import Tokens, clamp_budget


@explains
def farthest_points(
    x: Tensor, keep: int | list[int], *, mask: Tensor | None = None, backend: str = "torch"
) -> Assignment:
    r"""Chooses farthest points as centres, and merges each token into its nearest.

    .. math:: c_1 = 1, \qquad c_{t+1} = \arg\max_i \min_{s \le t} \lVert x_i - x_{c_s} \rVert

    Args:
        x: Features, ``[B, N, C]``.
        keep: Clusters an image, or one number for each image; clamped to its tokens.
        mask: ``[B, N]`` bool, True where there is a token.
        backend: ``"torch"``, or ``"torch-cluster"`` for its ``fps``; the same centres except for ties by rounding.

    Returns:
        The map, with ``centers``; clusters are numbered in the order of their centres' indices.

    Raises:
        ValueError: If ``keep`` is below 1, tokens are not finite, or for another backend.
        ImportError: If torch-cluster is asked for and not usable.

    Cost: ``keep`` steps of ``O(B N C)``, which compiled and exported graphs unroll.

    Example:
        >>> farthest_points(torch.tensor([[[0.0], [1.0], [9.0], [10.0]]]), 2).cluster.tolist()
        [0, 0, 1, 1]

    Ties: the lower index; tokens between two centres go to the one that was chosen first.

    Source: Gonzalez, *Clustering to Minimize the Maximum Intercluster Distance*, TCS 1985, within a factor 2 of the
    least radius. In vision: PointNet++, NeurIPS 2017.
    """
    check_tokens(x)
    check_mask(mask, x)
    check_finite(x if mask is None else x[mask])
    _check_backend(backend)
    return _farthest(x, keep, mask, backend)


@dataclass(frozen=True)
class FarthestPoints(Select):
    """Farthest points as a strategy, after a block, on the features; see :func:`farthest_points`.

    Args:
        backend: ``"torch"`` or ``"torch-cluster"``.
    """

    name: ClassVar[str] = "farthest-points"
    reads: ClassVar[str] = "nothing"
    placement: ClassVar[str] = "after"
    backend: str = "torch"

    def __post_init__(self) -> None:
        _check_backend(self.backend)

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> Assignment:
        """Maps the tokens to clusters; see :class:`tokengraph.Select`."""
        return _farthest(tokens.x, budget, tokens.mask, self.backend)

    def cost(self, num_tokens: int, keep: int, channels: int, head_width: int = 64) -> Cost:
        """Counts, for each centre, differences to all tokens, their norms, a minimum and a maximum."""
        return Cost(3 * keep * num_tokens * channels, 12 * keep * num_tokens * channels)


def _check_backend(backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"Expected backend to be one of {', '.join(BACKENDS)} (got {backend!r}).")


def _farthest(x: Tensor, keep: int | list[int], mask: Tensor | None, backend: str) -> Assignment:
    budget = clamp_budget(keep, x, mask)
    if x.size(0) == 0 or x.size(1) == 0 or (not isinstance(budget, list) and budget == x.size(1)):
        everyone = torch.arange(x.size(1), device=x.device).expand(x.shape[:2])
        most = max(budget, default=0) if isinstance(budget, list) else budget
        return Assignment.from_dense(everyone, budget, mask=mask, centers=everyone[:, :most])
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        if backend == "torch":
            center, centers = farthest_centers(x.detach(), budget, mask)
        else:
            centers = by_torch_cluster(x.detach(), budget, mask)
            center = nearest_center(Distances(x.detach(), mask), centers, budget, mask)
        return assign_to_centers(center, centers, budget, mask=mask, order="index")
