"""TPS: squeezes each pruned token into the most similar one that stays."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from tokengraph.attention.keep_mask import KeepMask
from tokengraph.cost import Cost, distance_cost
from tokengraph.errors import check_finite, check_mask, check_tokens
from tokengraph.kinds import explains
from tokengraph.maps.soft import SoftAssignment
from tokengraph.nn.squeeze import EPS, squeeze
from tokengraph.select.decided import Moved
from tokengraph.select.dynamicvit import DynamicViT, Floors
from tokengraph.select.layers import own_layers
from tokengraph.select.parts.choices.best import keep_best
from tokengraph.select.parts.choices.hosts import find_hosts
from tokengraph.select.tokens import Tokens, clamp_budget

if TYPE_CHECKING:
    from tokengraph.schedule import Schedule


@explains
def tps(
    score: Tensor,
    x: Tensor,
    keep: int | list[int],
    *,
    tau: float = 1.0,
    mask: Tensor | None = None,
    official: bool = False,
) -> SoftAssignment:
    r"""Keeps the tokens with the highest scores, and averages the others into their most similar kept token.

    A host counts :math:`e`, a guest of cosine c counts :math:`e^{c / \tau}`; so a host without guests stays as it is.

    Args:
        score: ``[B, N]``; ties go to the lower index.
        x: Features, ``[B, N, C]``. Gradients reach them through the weights.
        keep: Tokens an image.
        tau: Temperature of guests; it does not act on hosts, as in the code.
        mask: ``[B, N]`` bool, True where there is a token.
        official: Every host of the highest similarity gets the guest, not only the first.

    Returns:
        The weighted map over ``B*N`` tokens (the True ones of ``mask``); clusters are the kept tokens in order, and
        ``lift`` gives each guest its host's row.

    Raises:
        ValueError: If shapes do not fit or a value is not finite.

    Cost: a sort, and ``O(B (N - keep) keep C)``; no host synchronisation without a mask.

    Example:
        >>> x = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]]])
        >>> tps(torch.tensor([[3.0, 2.0, 1.0]]), x, 2).reduce(x[0])[0].round(decimals=4).tolist()
        [[1.5, 0.0], [0.0, 1.0]]

    Source: Wei et al., *Joint Token Pruning and Squeezing*, CVPR 2023, and its code. Differs: ties.
    """
    check_tokens(x)
    check_mask(mask, x)
    if score.shape != x.shape[:2] or not tau > 0:
        raise ValueError(
            f"Expected score of shape {list(x.shape[:2])} and tau > 0 (got {list(score.shape)} and {tau})."
        )
    check_finite(score if mask is None else score[mask])
    return _tps(score, x, keep, tau, mask, official)


def _tps(
    score: Tensor, x: Tensor, keep: int | list[int], tau: float, mask: Tensor | None, official: bool = False
) -> SoftAssignment:
    budget = clamp_budget(keep, x, mask)
    hard = keep_best(score, budget, mask)
    each = budget if isinstance(budget, list) else [budget]
    kept = hard.cluster < hard.num_clusters
    kept = kept.view(x.shape[:2]) if mask is None else torch.zeros_like(mask).masked_scatter(mask, kept)
    with torch.autocast(x.device.type, enabled=False):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        unit = wide / (torch.linalg.vector_norm(wide, dim=2, keepdim=True) + EPS)
        found = find_hosts(unit, kept, max(each, default=0), min(each, default=0), mask)
        share = (found.score / tau - 1).exp()
    number = torch.arange(x[..., 0].numel(), device=x.device).view(x.shape[:2])
    if mask is not None:
        number = (mask.flatten().cumsum(0) - 1).view_as(mask)
    guest, host = number.gather(1, found.guest), number.gather(1, found.host)
    if found.real is not None:
        guest, host, share = guest[found.real], host[found.real], share[found.real]
    assert hard.centers is not None
    token = torch.cat([hard.centers, guest.flatten()])
    cluster = torch.cat([torch.arange(hard.num_clusters, device=x.device), hard.cluster[host.flatten()]])
    weight = torch.cat([share.new_ones(hard.num_clusters), share.flatten()])
    if official:
        token, cluster, weight = _tied(unit, kept, hard.cluster, hard.num_clusters, tau, mask)
    up = (token, cluster, torch.ones_like(weight, requires_grad=False))
    return SoftAssignment(
        token, cluster, weight, hard.num_tokens, hard.num_clusters, True, None if official else up,
        hard.ptr, hard.cluster_ptr, hard.centers, counts=hard.counts, others=None if official else x.size(1),
    )  # fmt: skip


def _tied(
    unit: Tensor, kept: Tensor, cluster: Tensor, clusters: int, tau: float, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Edges from each guest to every host of the highest similarity, and from each host to itself."""
    there = torch.ones_like(kept) if mask is None else mask
    edges = torch.matmul(unit, unit.transpose(1, 2)).masked_fill(~(kept & there)[:, None], -torch.inf)
    best = (edges == edges.amax(dim=2, keepdim=True)) & (there & ~kept)[..., None]
    own = torch.diag_embed(kept & there)
    image, token, host = (best | own).nonzero(as_tuple=True)
    number = (there.flatten().cumsum(0) - 1).view_as(there)
    score = torch.where(token == host, 1.0, edges[image, token, host] / tau)
    return number[image, token], cluster[number[image, host]], (score - 1).exp()


class TPS(DynamicViT):
    """Pruning in stages that loses no token: the pruned ones are squeezed into those that stay; see :func:`tps`.

    ``variant="dtps"`` scores by DynamicViT's prediction modules before a block, which need training. In train mode all
    tokens stay: tokens that a stage prunes give their features to their hosts at once, and attention ignores them from
    then on. Losses: :class:`tokengraph.losses.DynamicViTLoss`. ``variant="etps"`` scores by class attention between
    attention and MLP; it has nothing to train.

    Args:
        keep: Keeps the shares ``keep``, ``keep**2``, ... of the input.
        variant: ``"dtps"`` or ``"etps"``.
        tau: As in :func:`tps`.
        official_ties: As ``official`` in :func:`tps`.
        options: Those of :class:`DynamicViT`, such as ``layers`` and ``ratios``. ``layers`` of ``"dtps"`` act before
            the next block, those of ``"etps"`` inside the block that they count last.

    Source: Wei et al., CVPR 2023, and its code, in which dTPS alone is complete; eTPS is our own reading.
    """

    name: ClassVar[str] = "tps"

    def __init__(
        self,
        keep: float = 0.7,
        *,
        variant: str = "dtps",
        tau: float = 1.0,
        official_ties: bool = False,
        **options: object,
    ) -> None:
        if variant not in ("dtps", "etps"):
            raise ValueError(f"Expected variant to be 'dtps' or 'etps' (got {variant!r}).")
        if not tau > 0:
            raise ValueError(f"Expected tau > 0 (got {tau}).")
        super().__init__(keep, **options)  # type: ignore[arg-type]
        self.variant, self.tau, self.official_ties = variant, tau, official_ties

    @classmethod
    def published(cls, keep: float = 0.7) -> TPS:
        """Returns dTPS as released: all tied hosts, and the published masked softmax.

        Source: the code of Wei et al., CVPR 2023.
        """
        return cls(keep, official=True, official_ties=True)

    def __repr__(self) -> str:
        return f"TPS(keep={self.keep}, variant={self.variant!r})"

    @property
    def _learned(self) -> bool:
        return self.variant == "dtps"

    @property
    def learns(self) -> bool:  # type: ignore[override]
        """True for ``"dtps"``."""
        return self._learned

    @property
    def placement(self) -> str:  # type: ignore[override]
        """``"before"`` a block, ``"inside"`` it for ``"etps"``."""
        return "before" if self._learned else "inside"

    @property
    def reads(self) -> str:  # type: ignore[override]
        """Nothing, or ``"class"`` attention for ``"etps"``."""
        return "nothing" if self._learned else "class"

    def bind(self, channels: int, depth: int, schedule: Schedule | None = None) -> tuple[DynamicViT, Schedule]:
        """Returns a copy for a model, and its schedule; see :meth:`DynamicViT.bind`."""
        if self._learned:
            return super().bind(channels, depth, schedule)
        if schedule is not None:
            return self, schedule
        bound = copy.copy(self)
        bound.layers = own_layers(self.layers, depth, inside=True)
        bound.ratios = self.ratios or tuple(self.keep ** (s + 1) for s in range(len(bound.layers)))
        return bound, Floors(bound.layers, bound.ratios, self.min_keep)

    def acts(self, finished: int, keep: int, count: int) -> bool:
        """As DynamicViT, or where tokens leave."""
        return super().acts(finished, keep, count) if self._learned else keep < count

    def decide(self, tokens: Tokens) -> Moved | None:  # type: ignore[override]
        """DynamicViT's decision in train mode, with the rows squeezed; ``None`` in eval mode."""
        mask = super().decide(tokens) if self._learned else None
        if not isinstance(mask, KeepMask):
            return None
        before = torch.ones_like(mask.keep) if tokens.keep is None else tokens.keep.to(mask.keep.dtype)
        rows = squeeze(tokens.x, mask.keep, before - mask.keep, tau=self.tau, official=self.official_ties)
        return Moved(mask, rows)

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> SoftAssignment:  # type: ignore[override]
        """Maps the tokens to clusters; see :class:`tokengraph.Select`."""
        if not self._learned:
            return _tps(tokens.class_attention(), tokens.x, budget, self.tau, tokens.mask, self.official_ties)
        score, budget = self.score(tokens, budget)
        return _tps(score, tokens.x, budget, self.tau, tokens.mask, self.official_ties)

    @property
    def restores(self) -> bool:
        """Every token has a host."""
        return True

    def cost(self, num_tokens: int, keep: int, channels: int, head_width: int = 64) -> Cost:
        """The score, and the products of guests and hosts."""
        score = Cost(2 * num_tokens * channels, 4 * num_tokens * channels)
        if self._learned:
            score = super().cost(num_tokens, keep, channels, head_width)
        return score + distance_cost(num_tokens - keep, keep, channels)
