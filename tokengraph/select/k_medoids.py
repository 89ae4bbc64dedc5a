"""K-medoids: each cluster stands around the token that lies nearest to all its tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokengraph.cost import Cost, distance_cost
from tokengraph.errors import check_finite, check_mask, check_positive, check_tokens
from tokengraph.kinds import explains
from tokengraph.maps.hard import Assignment
from tokengraph.schedule import Schedule, powers
from tokengraph.select.base import Select
from tokengraph.select.parts.choices.medoids import farthest_first, refine_medoids
from tokengraph.select.parts.choices.peaks import assign_to_centers
from tokengraph.select.parts.graphs.complete import Distances
from tokengraph.select.parts.scores.received import received
from tokengraph.select.tokens import Tokens, clamp_budget

OBJECTIVES = ("cluster", "released")


@explains
def k_medoids(
    x: Tensor,
    keep: int | list[int],
    *,
    weight: Tensor | None = None,
    iterations: int = 3,
    objective: str = "cluster",
    mask: Tensor | None = None,
) -> Assignment:
    r"""Clusters tokens around medoids.

    The first centres are the tokens of largest weight. Then in turns, with Euclidean distances :math:`d`:

    .. math:: c(i) = \operatorname{argmin}_m d(i, z_m), \qquad
              z_m = \operatorname{argmin}_{c(i)=m} \textstyle\sum_{c(j)=m} w_j d_{ij}

    Args:
        x: Token features, ``[B, N, C]``.
        keep: Clusters an image, at least 1; clamped to the tokens an image has. A list gives one budget an image.
        weight: ``[B, N]``, not negative. ``None``: all count alike, and the first centres are the medoid of all tokens,
            then one after another the token farthest from all centres so far.
        iterations: Turns, at least 1.
        objective: ``"cluster"``, as above; ``"released"``: :math:`w_i \sum_j d_{ij}` over all tokens of the image,
            in any cluster, as the published code computes it.
        mask: ``[B, N]`` bool, True where there is a token.

    Returns:
        The map over ``B*N`` tokens (the True ones of ``mask``), with ``centers``: clusters follow the order of their
        centres. ``reduce="center"`` picks the centres' rows, as published.

    Raises:
        ValueError: If ``keep`` or ``iterations`` is below 1, ``objective`` is unknown, or tokens or weights are not
            finite or do not fit.

    Cost: ``O(B N^2 C)`` time once and ``O(B N^2)`` an iteration, ``B N^2`` floats in chunks of at most 256 MB (several
    chunks are computed anew each time). Without weights also ``keep`` steps one after another. No host synchronisation
    without a mask.

    Example:
        >>> k_medoids(torch.tensor([[[0.0], [1.0], [2.0], [9.0], [9.5]]]), 2).cluster.tolist()
        [0, 0, 0, 1, 1]

    Source: the clustering of TokenReduction, Haurum et al., *Which Tokens to Use?*, ICCV workshop 2023, and its code.
    Differs: a medoid is nearest to its own cluster (published: ``objective="released"``, by which little attended
    tokens win), centres stay in their clusters, equal weights start without random numbers.
    """
    check_tokens(x)
    check_positive(iterations=iterations)
    check_mask(mask, x)
    check_finite(x if mask is None else x[mask])
    _check_objective(objective)
    _check_weight(weight, x, mask)
    return _k_medoids(x, keep, weight, iterations, objective, mask)


@dataclass(frozen=True)
class KMedoids(Select):
    """K-medoids as a strategy, after a block, on the features; see :func:`k_medoids`.

    Score: attention received. Graph: complete. Choice: medoids. Reduction: the medoid's row, or the mean.

    Args:
        weight: ``"attention"``: what each token receives in the block before, over heads and queries; ``"equal"``.
        iterations: Turns.
        reduce: ``"center"``: the medoid's row, as published (no sizes weigh then); ``"mean"``: by size.
        objective: ``"cluster"`` or ``"released"``.
    """

    name: ClassVar[str] = "k-medoids"
    placement: ClassVar[str] = "after"
    weight: str = "attention"
    iterations: int = 3
    reduce: str = "center"
    objective: str = "cluster"

    def __post_init__(self) -> None:
        check_positive(iterations=self.iterations)
        _check_objective(self.objective)
        if self.weight not in ("attention", "equal"):
            raise ValueError(f"Expected weight to be 'attention' or 'equal' (got {self.weight!r}).")
        if self.reduce not in ("center", "mean"):
            raise ValueError(f"Expected reduce to be 'center' or 'mean' (got {self.reduce!r}).")

    @classmethod
    def published(cls) -> KMedoids:
        """What the published code computes: 3 iterations, its objective, the medoids' rows."""
        return cls(objective="released")

    @staticmethod
    def published_schedule(keep: float = 0.9) -> Schedule:
        """Before blocks 3, 6 and 9: ``int(N * keep)`` tokens, then with the second and third power of ``keep``."""
        return powers(keep, (3, 6, 9))

    @property
    def reads(self) -> str:  # type: ignore[override]
        """``"map"`` for its column sums or, for equal weights, ``"nothing"``."""
        return "map" if self.weight == "attention" else "nothing"

    @property
    def weighs(self) -> bool:
        """Whether sizes weigh: where rows are means. A medoid is a single token."""
        return self.reduce == "mean"

    def reduction_at(self, layer: int) -> str:
        """As ``reduce`` says."""
        return self.reduce

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> Assignment:
        """Maps the tokens to clusters; see :class:`tokengraph.Select`."""
        weight = None
        if self.weight == "attention":
            if tokens.attention is None:
                raise ValueError(
                    "Expected tokens with attention (got tokens outside a model's block). Use weight='equal'."
                )
            weight = received(tokens.attention)
        return _k_medoids(tokens.x, budget, weight, self.iterations, self.objective, tokens.mask)

    def cost(self, num_tokens: int, keep: int, channels: int, head_width: int = 64) -> Cost:
        """All distances once; in each iteration a minimum over centres and sums over clusters."""
        pairs, turns = num_tokens * num_tokens, self.iterations
        each = Cost(3 * pairs + keep * num_tokens, 4 * (2 * pairs + keep * num_tokens))
        return distance_cost(num_tokens, num_tokens, channels) + each * turns


def _check_objective(objective: str) -> None:
    if objective not in OBJECTIVES:
        raise ValueError(f"Expected objective to be one of {', '.join(OBJECTIVES)} (got {objective!r}).")


def _check_weight(weight: Tensor | None, x: Tensor, mask: Tensor | None) -> None:
    if weight is None:
        return
    if not isinstance(weight, Tensor) or weight.shape != x.shape[:2]:
        got = list(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        raise ValueError(f"Expected weight of shape [B, N] = {list(x.shape[:2])} (got {got}).")
    check_finite((weight if mask is None else weight[mask])[..., None], "weight")


def _k_medoids(
    x: Tensor, keep: int | list[int], weight: Tensor | None, iterations: int, objective: str, mask: Tensor | None
) -> Assignment:
    budget = clamp_budget(keep, x, mask)
    images, tokens = x.shape[:2]
    most = max(budget, default=0) if isinstance(budget, list) else budget
    if budget == tokens or images == 0 or tokens == 0 or most == 0:
        everyone = torch.arange(tokens, device=x.device).expand(images, tokens)
        return Assignment.from_dense(everyone, budget, mask=mask, centers=everyone[:, :most])
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        pairs = Distances(x.detach(), mask)
        if weight is None:
            weight, centers = pairs.x.new_ones(images, tokens), farthest_first(pairs, most)
        else:
            weight = weight.detach().to(pairs.x.dtype)
            score = weight if mask is None else weight.masked_fill(~mask, -torch.inf)
            centers = score.argsort(dim=1, descending=True, stable=True)[:, :most]
        if isinstance(budget, list):
            spare = torch.arange(most, device=x.device) >= torch.tensor(budget, device=x.device)[:, None]
            centers = centers.masked_fill(spare, tokens)
        centers, label = refine_medoids(pairs, centers, weight, iterations, objective=objective)
        own = torch.cat([centers, centers.new_zeros(images, 1)], dim=1).gather(1, label).clamp_max(tokens - 1)
        return assign_to_centers(own, centers, budget, mask=mask, order="index", spare=True)
